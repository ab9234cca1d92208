cpdef long long diff(long long a, long long b) noexcept
cpdef long long add(long long a, long long n) noexcept
cpdef bint lt(long long a, long long b) noexcept
cpdef bint le(long long a, long long b) noexcept
