"""Threads of LAPACK: those of all Python threads are limited while any of them asks for it, and
given back when the last one ends, in whatever order they do.
"""

import threading

import pytest
import scipy.linalg  # noqa: F401 (loads LAPACK)
from threadpoolctl import threadpool_info

from sdntk._linalg import blas_in_one_thread


def numbers_of_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_overlapping_threads_leave_the_limits_as_they_were():
    before = numbers_of_threads()
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with blas_in_one_thread():
            first_is_in.set()
            second_is_in.wait(10)
        seen.append(numbers_of_threads())  # the second one is still inside
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
    assert seen == [[1] * len(before)] != [[]]
    assert numbers_of_threads() == before


def test_an_error_inside_gives_them_back():
    before = numbers_of_threads()
    with pytest.raises(ZeroDivisionError), blas_in_one_thread(), blas_in_one_thread():
        raise ZeroDivisionError
    assert numbers_of_threads() == before
