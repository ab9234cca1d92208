cimport cython

cdef int _KIND_MALFORMED, _KIND_CHATTER, _KIND_TCP, _KIND_UDP, _KIND_ICMP, _KIND_ICMPV6, _KIND_OTHER_IP
cdef int _KIND_FRAGMENT, _KIND_UNKNOWN
cdef int _IPPROTO_ICMP, _IPPROTO_IGMP, _IPPROTO_TCP, _IPPROTO_UDP, _IPPROTO_ICMPV6
cdef int _ETH_HEADER, _ETH_VLAN, _ETH_QINQ, _ETH_IPV4, _ETH_IPV6, _ETH_SMALLEST_TYPE, _VLAN_MOST_TAGS, _VLAN_TAG
cdef int _IPV4_HEADER, _IPV4_PROTOCOL, _IPV4_MORE_FRAGMENTS, _IPV4_OFFSET_MASK, _IPV4_FRAGMENT
cdef int _IPV6_HEADER, _IPV6_NEXT_HEADER, _IPV6_HOP_BY_HOP, _IPV6_ROUTING, _IPV6_DESTINATION_OPTIONS
cdef int _IPV6_AUTHENTICATION, _IPV6_FRAGMENT, _IPV6_MOST_EXTENSIONS, _IPV6_JUMBO
cdef int _TCP_HEADER, _TCP_DATA_OFFSET, _UDP_HEADER, _UDP_LENGTH, _ICMP_HEADER

cdef long long _MASK32

@cython.final
cdef class Frame:
    cdef public int kind, start, end, tags, ethertype, l3, l4, version, protocol, payload, payload_end, missing, cut

cpdef int dissect(Frame f, const unsigned char[::1] buf, int start, int end) except -1
cpdef int dissect_at(Frame f, const unsigned char* buf, int start, int end) noexcept
@cython.locals(kind=cython.int)
cpdef int dissect_cut_at(Frame f, const unsigned char* buf, int start, int end) noexcept
@cython.locals(at=cython.int, ethertype=cython.int)
cdef int _link(Frame f, const unsigned char* buf, int start, int end) noexcept
@cython.locals(header=cython.int, total=cython.int)
cdef int _ipv4(Frame f, const unsigned char* buf, int at, int end) noexcept
@cython.locals(total=cython.longlong, following=cython.int, walked=cython.int, length=cython.int)
cdef int _ipv6(Frame f, const unsigned char* buf, int at, int end) noexcept
@cython.locals(options=cython.int)
cdef long long _jumbo_length(const unsigned char* buf, int at, int end) noexcept
@cython.locals(at=cython.int, room=cython.int, protocol=cython.int, header=cython.int, length=cython.int)
cdef int _transport(Frame f, const unsigned char* buf) noexcept
