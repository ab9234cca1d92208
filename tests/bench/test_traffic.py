"""The frames that the benchmarks feed are right, and told apart."""

from packets import inet_sum, pseudo

from bench.traffic import Traffic


def test_every_frame_is_a_right_tcp_segment():
    traffic = Traffic.make(flows=3, payload=11, frames=7)
    for each in traffic.split(traffic.opening) + traffic.split(traffic.measured):
        packet = each[14:]
        assert each[12:14] == b"\x08\0"
        assert int.from_bytes(packet[2:4], "big") == len(packet) == 20 + 20 + 11
        assert inet_sum(packet[:20]) == 0xFFFF
        ends = (".".join(map(str, packet[at : at + 4])) for at in (12, 16))
        assert inet_sum(pseudo(*ends, 6, 31) + packet[20:]) == 0xFFFF


def test_flows_take_turns_and_each_goes_on_where_it_was():
    traffic = Traffic.make(flows=3, payload=10, frames=6)
    assert (len(traffic.split(traffic.opening)), len(traffic.split(traffic.measured))) == (3, 6)
    seqs: dict[bytes, list[int]] = {}
    for each in traffic.split(traffic.opening + traffic.measured):
        seqs.setdefault(each[26:38], []).append(int.from_bytes(each[38:42], "big"))
    assert len(seqs) == 3
    for first, second, third in seqs.values():
        assert (second - first) % 2**32 == (third - second) % 2**32 == 10
    assert list(seqs) == [each[26:38] for each in traffic.split(traffic.opening)]


def test_a_million_flows_have_names_of_their_own():
    from bench.traffic import _head

    heads = {_head(flow, 10)[0] for flow in (0, 1, 49_999, 50_000, 999_999)}
    assert len(heads) == 5


def test_batches_hold_whole_frames_and_all_of_them():
    traffic = Traffic.make(flows=1, payload=10, frames=10)
    batches = traffic.batches(traffic.measured, most=3 * traffic.size + 1)
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    assert b"".join(batch.data for batch in batches) == traffic.measured


def test_chardev_framing_is_a_big_endian_length_before_each_frame():
    traffic = Traffic.make(flows=1, payload=10, frames=2)
    framed = traffic.framed(traffic.measured)
    assert framed[:4] == b"\0\0\0\x40"
    assert framed[4:68] == traffic.measured[:64]
    assert len(framed) == 2 * 68
