"""The link of an engine to its daemon, without either: how often it tries, and what it says."""

import logging
import threading
from types import SimpleNamespace

import lapis_kv
from lapis_kv.vllm import link


class Waits:
    """In place of the event that ends a link: nobody sleeps, and after so many pauses it is over."""

    def __init__(self, count: int):
        self.pauses, self.count, self.over = [], count, threading.Event()

    def wait(self, pause: float) -> bool:
        self.pauses.append(pause)
        if len(self.pauses) == self.count:
            self.over.set()
        return len(self.pauses) >= self.count

    def set(self):
        pass


def linked(monkeypatch, path, count: int):
    waits = Waits(count)
    monkeypatch.setattr(link, "threading", SimpleNamespace(Event=lambda: waits, Thread=threading.Thread))
    made = link.Link(str(path), "test", lambda client: "pools")
    assert waits.over.wait(10)
    return made, waits.pauses


def test_without_a_daemon_it_tries_again_soon_and_then_less_often(tmp_path, monkeypatch):
    made, pauses = linked(monkeypatch, tmp_path / "nobody", 6)
    assert pauses == [0.5, 1, 2, 4, 5, 5]
    assert made.client is None


def test_a_first_attempt_that_is_late_is_made_up_for_by_the_second_and_said(tmp_path, monkeypatch, caplog):
    attempts = []

    def connect(path, name, gpus):
        assert not gpus
        attempts.append(path)
        if len(attempts) == 1:
            return lapis_kv.Client(path, name=name)  # Nobody is there.
        return SimpleNamespace(close=lambda: None)

    kv = SimpleNamespace(Client=connect, LapisError=lapis_kv.LapisError, LateError=lapis_kv.LateError, status=lambda *_, **__: {})
    monkeypatch.setattr(link, "lapis_kv", kv)
    caplog.set_level(logging.INFO, "vllm.lapis")
    monkeypatch.setattr(link.logger, "propagate", True)
    made, pauses = linked(monkeypatch, tmp_path / "nobody", 3)
    assert len(attempts) == 2 and made.client is not None and made.made == "pools"
    assert pauses == [0.5, 2, 2], "from then on it asks whether the daemon answers"
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "no KV cache from Lapis yet" in line and line.endswith(f"({tmp_path / 'nobody'}, test)")]
    assert [line for line in said if "KV cache from Lapis at" in line] == [f"KV cache from Lapis at {tmp_path / 'nobody'} (test)"]
    assert len(said) == 2


def test_whether_gpus_are_served_is_asked_only_for_who_wants_them_and_heard_again_each_time(tmp_path, monkeypatch):
    told = [{"gpus": []}, {"gpus": [{"state": "lost"}, {"state": "well"}]}, {}, {"gpus": [{"state": "hangs"}]}]
    for wanted in (True, False):
        asked, seen = [], []

        def status(path, deadline):
            seen.append(made[0].serves_gpus if made else False)
            asked.append(path)
            return told[min(len(asked), len(told)) - 1]

        made = []
        kv = SimpleNamespace(
            Client=lambda path, name, gpus: SimpleNamespace(close=lambda: None, gpus=gpus), LapisError=lapis_kv.LapisError,
            LateError=lapis_kv.LateError, status=status,
        )
        monkeypatch.setattr(link, "lapis_kv", kv)
        it = link.Link.__new__(link.Link)
        made.append(it)
        monkeypatch.setattr(link, "threading", SimpleNamespace(Event=lambda: Waits(1), Thread=_NoThread))
        it.__init__(str(tmp_path / "d"), "test", lambda client: None, gpus=wanted)
        assert it.client.gpus is wanted and len(asked) == int(wanted)
        for _ in range(3):
            it._ping()
        assert (*seen, it.serves_gpus) == ((False, False, True, False, False) if wanted else (False,) * 4)


class _NoThread:
    def __init__(self, **_):
        pass

    def start(self):
        pass
