"""A real vLLM over a real daemon: the tokens are those of an engine without Lapis, whatever happens to the blocks.

Engines take half a minute to start: one serves many tests, each of which begins with an empty daemon.
"""

import os
import signal
import time

import pytest

import model as tiny
from hosts import Engine, Host, connector, prompts

# Links of an engine of one rank: its scheduler's and its worker's.
LINKS = 2
WARM = [192, 192]
# What the engine itself has of the second prompt.
OWN = [0, 160]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("host")).start()
    yield host
    host.close()


@pytest.fixture(scope="session")
def first(model, host):
    """An engine without a connector, and one with it."""
    both = Engine(model), Engine(model, connector(host))
    yield both
    for engine in both:
        engine.close()


@pytest.fixture(scope="session")
def expected(first):
    tokens = [first[0].generate([prompt])[0]["tokens"] for prompt in prompts()]
    first[0].close()
    return tokens


@pytest.fixture
def engine(first, host, expected):
    host.renew(LINKS)
    first[1].linked().forget()
    return first[1]


@pytest.fixture
def engines():
    def start(*given, **named):
        start.started.append(Engine(*given, **named))
        return start.started[-1]

    start.started = []
    yield start
    for engine in start.started:
        engine.close()


def serve(engine):
    """Both prompts, one after the other: tokens, and cached tokens of each."""
    answers = [engine.generate([prompt])[0] for prompt in prompts()]
    return [answer["tokens"] for answer in answers], [answer["cached"] for answer in answers]


def warnings(engine, text: str) -> int:
    return sum("WARNING" in line for line in engine.lines(text))


def test_tokens_are_the_same_cold_warm_and_after_kills(model, expected, host, engine, engines):
    other = engines(model, connector(host)).linked()
    assert serve(engine) == (expected, OWN), "cold"
    engine.forget()
    assert serve(engine) == (expected, WARM), "from memory"
    # Two engines share the daemon: this one has nothing of its own.
    assert serve(other) == (expected, WARM)
    for _ in range(2):
        for each in (engine, other):
            each.forget()
            assert serve(each) == (expected, WARM)
    other.close()

    gone = "no daemon of Lapis any more"
    lines, warned = len(engine.lines(gone)), warnings(engine, gone)
    host.kill()
    engine.forget()
    assert serve(engine)[0] == expected, "while the daemon is dead"
    engine.said(gone, lines + LINKS)
    host.start().met(LINKS)
    engine.linked().forget()
    assert serve(engine) == (expected, WARM), "after a kill of the daemon"
    assert warnings(engine, gone) == warned + 1

    blocks = host.written_ahead()
    host.kill(holder=True)
    host.start().met(LINKS).serves_ssd()
    assert host.status()["ssd"]["recovered_blocks"] >= blocks
    engine.forget()
    assert serve(engine) == (expected, WARM), "after a kill of daemon and holder"
    assert host.status()["hits"]["keys_hit_ssd"] > 0
    assert engine.metrics()["vllm:lapis_load_blocks"] > 0


def test_a_daemon_that_hangs_is_no_cache_and_one_warning(expected, host, engine):
    assert serve(engine) == (expected, OWN)
    hangs = "Lapis does not answer"
    lines, warned = len(engine.lines(hangs)), warnings(engine, hangs)
    # Also waits for what is being saved: a daemon that hangs would take none of it.
    engine.forget()
    with host.stopped():
        assert serve(engine)[0] == expected
        engine.said(hangs, lines + LINKS)
        engine.forget()
        assert serve(engine) == (expected, OWN), "as without a cache"
    engine.linked().forget()
    assert serve(engine) == (expected, WARM)
    assert warnings(engine, hangs) == warned + 1


def test_a_damaged_ssd_file_is_a_smaller_cache(expected, host, engine):
    assert serve(engine)[0] == expected
    host.written_ahead()
    host.kill(holder=True)
    with open(host.folder / "lapis.ssd", "r+b") as file:
        # Past superblock and headers: payloads of the first segments.
        for at in range(1 << 20, 64 << 20, 4096):
            file.seek(at + 100)
            byte = file.read(1)
            file.seek(at + 100)
            file.write(bytes([byte[0] ^ 0x55]))
    host.start().met(LINKS).serves_ssd()
    engine.forget()
    tokens, cached = serve(engine)
    assert tokens == expected and cached[0] < WARM[0]
    engine.forget()
    assert serve(engine) == (expected, WARM), "stored again"


def test_a_reset_of_the_connector_forgets_what_is_in_lapis(expected, engine):
    assert serve(engine)[0] == expected
    engine.forget_all()
    assert serve(engine) == (expected, OWN)
    engine.forget()
    assert serve(engine) == (expected, WARM), "what was computed since is found"


def test_two_ranks_have_blocks_of_their_own(model, expected, host, engine, engines):
    two = engines(model, connector(host), tp=2).linked()
    # A daemon that is held up for a while makes the saves when it goes on: ranks that wait for them leave it a processor. One
    # that is held up for 5 s, as it would be here where the machine is slow, is taken for none.
    with host.stopped(3):
        tokens, cached = serve(two)
        time.sleep(1)
    assert cached == OWN
    two.forget()
    assert serve(two) == (tokens, WARM)
    # Sums in another order may give other tokens than one rank; what two ranks stored is none of theirs.
    assert serve(engine) == (expected, OWN)


def test_a_block_that_is_lost_or_a_daemon_that_dies_between_look_up_and_load_is_computed_again(
    model, expected, host, engine, engines, tmp_path
):
    loads = ("async", "sync")
    faults = {load: tmp_path / load for load in loads}
    faulty = {
        load: engines(model, connector(host, "FaultyConnector", load=load, load_seconds=2), fault=faults[load]) for load in loads
    }
    for one in faulty.values():
        one.linked()
    for load, one in faulty.items():
        fault = faults[load]
        host.renew(3 * LINKS)
        one.forget()
        assert serve(one)[0] == expected
        one.forget()
        fault.write_text("lose")
        assert serve(one)[0] == expected, "recomputed"
        fault.unlink()
        one.forget()
        assert serve(one) == (expected, WARM), "what was computed again was saved again"

        one.forget()
        fault.write_text(f"kill {host.daemon.pid}")
        assert serve(one)[0] == expected, "the daemon died in a load"
        assert not fault.exists()
        host.kill()
        host.start().met(3 * LINKS)
        one.forget()
        assert serve(one) == (expected, WARM)


def test_a_lost_block_ends_its_request_where_the_engine_is_told_so(model, expected, host, engine, engines, tmp_path):
    fault = tmp_path / "fault"
    # By a buffer, as on a GPU.
    one = engines(model, connector(host, "FaultyConnector", policy="fail", staged=True), fault=fault).linked()
    assert serve(one) == (expected, OWN)
    one.forget()
    assert serve(one) == (expected, WARM)
    one.forget()
    fault.write_text("lose")
    assert one.generate([prompts()[0]])[0]["finish"] == "error"
    fault.unlink()
    assert serve(one)[0] == expected


def test_an_engine_starts_and_serves_without_a_daemon_and_says_so_once(model, expected, tmp_path, engines):
    hosts = [Host(tmp_path / name) for name in ("absent", "hung")]
    for each in hosts:
        each.folder.mkdir()
    try:
        hosts[1].start().serves_ssd().daemon.send_signal(signal.SIGSTOP)
        both = [engines(model, connector(each)) for each in hosts]
        for one in both:
            assert serve(one) == (expected, OWN)
            one.forget()
            assert serve(one) == (expected, OWN)
            one.said("no KV cache from Lapis yet", LINKS)
            assert warnings(one, "no KV cache from Lapis yet") == 1
        hosts[0].start()
        hosts[1].daemon.send_signal(signal.SIGCONT)
        for one in both:
            one.linked().forget()
            assert serve(one)[0] == expected
            one.forget()
            assert serve(one) == (expected, WARM)
    finally:
        for each in hosts:
            each.close()


def test_a_random_hash_seed_is_refused_with_the_fix(model, host):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    refused = Engine(model, connector(host), env=env, hash="xxhash")
    try:
        with pytest.raises(AssertionError, match="set PYTHONHASHSEED to a number.*--prefix-caching-hash-algo sha256"):
            refused.ready()
    finally:
        refused.close()


def test_a_model_of_two_groups_of_blocks_is_loaded_and_taken_back_by_request(tmp_path, host, engine, engines):
    fault = tmp_path / "fault"
    two = engines(tiny.make(tmp_path / "model", window=64), connector(host, "FaultyConnector"), fault=fault).linked()
    tokens, cached = serve(two)
    assert cached == OWN
    assert {pool["label"] for pool in host.status()["pools"]} == {"g0s0", "g1s0"}
    two.forget()
    assert serve(two) == (tokens, WARM)
    two.forget()
    fault.write_text("lose")
    assert serve(two) == (tokens, [0, 0]), "the whole request is computed again"
    fault.unlink()
    two.forget()
    assert serve(two)[0] == tokens
    two.forget()
    assert serve(two) == (tokens, WARM), "and saved again"
