"""More than one machine: two processes on loopback, started with jax.distributed, two virtual
devices each.

Must hold: the same numbers (1e-10) on one device and in two processes, from a Gram matrix whose
rows are sharded over the devices of both, and from tiles kept, computed again, and on disk, of
which each process takes its share. (One process with eight virtual devices: tests/test_krylov.py.)
"""

import json
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from helpers import with_virtual_devices

import sdntk
from sdntk.kernels import matern

SHARED = """
    import sys
    import jax
    jax.config.update("jax_enable_x64", True)
    address, index, folder, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    jax.distributed.initialize(address, num_processes=2, process_id=index)
    import json
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    import sdntk

    data = np.load(f"{folder}/data.npz")
    x, y, kernel = data["x"], data["y"], sdntk.kernels.matern(1.5, 2.0)
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
    of = lambda where: np.asarray(sdntk.gram(kernel, x[where[0]], x))
    G = jax.make_array_from_callback((len(x), len(x)), rows, of)
    assert not G.is_fully_addressable
    assert len(jax.devices()) == 4
    evaluated = []
    def counted(a, b):
        evaluated.append(len(a) * len(b))
        return kernel(a, b)
    sources = {
        "rows": sdntk.as_operator(G),
        "kept": sdntk.kernel_operator(counted, x, keep=True, block_size=50),
        "recomputed": sdntk.kernel_operator(kernel, x, keep=False, block_size=50),
        "disk": sdntk.as_operator(sdntk.gram(kernel, x, path=f"{folder}/G", block_size=50)),
    }
    answers = {"evaluated": sum(evaluated)}
    for name, source in sources.items():
        chain = {"tolerance": 0.1, "rounds": 4}
        run = sdntk.distill_spectrum(sdntk.krylov(source, y, **chain), y, **chain)
        answers[name] = [np.asarray(run.multipliers).tolist(), np.asarray(run.fitted).tolist()]
    with open(f"{out}{index}.json", "w") as file:
        json.dump(answers, file)
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    y = np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], axis=1) + 0.3 * rng.normal(size=(300, 2))
    np.savez(tmp_path / "data.npz", x=x, y=y)
    kernel, chain = matern(1.5, 2.0), {"tolerance": 0.1, "rounds": 4}
    G = sdntk.gram(kernel, x, path=tmp_path / "G", block_size=50)
    alone = sdntk.distill_spectrum(
        sdntk.krylov(sdntk.as_operator(np.asarray(G)), y, **chain), y, **chain
    )

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = with_virtual_devices(2) | {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(SHARED),
                address,
                str(index),
                str(tmp_path),
                str(tmp_path / "out"),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        told = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), told
    answers = [json.loads((tmp_path / f"out{index}.json").read_text()) for index in range(2)]
    assert (
        max(answer.pop("evaluated") for answer in answers) < 0.6 * 300 * 350 / 2
    )  # each its share
    assert answers[0] == answers[1]  # the same bits: steps and looks are decided by each
    for answer in answers:
        for name, (multipliers, fitted) in answer.items():
            np.testing.assert_allclose(multipliers, alone.multipliers, rtol=1e-10, err_msg=name)
            np.testing.assert_allclose(fitted, alone.fitted, rtol=0, atol=1e-10, err_msg=name)
