"""Threads of LAPACK: those of all Python threads are limited while any of them asks for it, and
given back once, when the last one ends, in whatever order they do. (Which of OpenBLAS's functions
another thread's limit reaches depends on who limited it before; here a stand-in counts.)
"""

import threading

import pytest
import scipy.linalg  # noqa: F401 (loads LAPACK)
from threadpoolctl import threadpool_info

from sdntk import _linalg
from sdntk._linalg import blas_in_one_thread


def numbers_of_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_within_it_there_is_one_thread_and_after_an_error_as_many_as_before():
    before, seen = numbers_of_threads(), []

    def fail():
        with blas_in_one_thread(), blas_in_one_thread():
            seen.extend(numbers_of_threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [1] * len(before) != []
    assert numbers_of_threads() == before


class Libraries:
    """A stand-in for the libraries, whose limit is its own restorer."""

    def __init__(self):
        self.calls = []

    def limit(self, **what):
        self.calls.append(what)
        return self

    def restore_original_limits(self):
        self.calls.append("restored")


def test_overlapping_threads_restore_the_limits_once(monkeypatch):
    libraries = Libraries()
    monkeypatch.setattr(_linalg, "_libraries", lambda: libraries)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with blas_in_one_thread():
            first_is_in.set()
            second_is_in.wait(10)
        seen.extend(libraries.calls)  # the second one is still inside
        first_is_out.set()

    def second():
        first_is_in.wait(10)
        with blas_in_one_thread():
            second_is_in.set()
            first_is_out.wait(10)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    limited = {"limits": 1, "user_api": "blas"}
    assert seen == [limited]
    assert libraries.calls == [limited, "restored"]
