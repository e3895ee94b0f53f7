"""The commands in processes of their own, many and quickly: each is forked from a process that has
imported everything and in which JAX has started nothing yet.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd

#: Reads jobs from standard input, a line each: starts one and answers its process, or waits for one
#: and answers how it ended.
SERVER = """
import faulthandler, gc, importlib.readers, json, os, resource, sys, traceback
import flax, jax, matplotlib.pyplot, numpy as np, optax, orbax.checkpoint, pandas
import PIL.PngImagePlugin, pyarrow.parquet, scipy.stats, sklearn.datasets
from sdntk import cli
from sdntk.datasets import Dataset
from sdntk.experiments import checkpoints, comparison, kernel_classification, network_study
from sdntk.experiments import paper_example, paper_figures
from sdntk.reports import kernel_classification, network_classification, paper_example
from sdntk.reports import comparison, network_study as _

def images(dataset, *_):
    if dataset.value == "digits":
        return load_named(dataset, *_)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 20, 32, 32, 3), np.uint8)
    labels = np.tile(np.arange(10, dtype=np.int32), 2)
    return Dataset("noise", pictures[0], labels, pictures[1], labels, tuple(map(str, range(10))))

def save_small(figure, path, **_):
    figure.set_layout_engine("none")
    savefig(figure, path, dpi=10, format="png")

checkpoints.SECONDS_BETWEEN_STATES = 0
load_named, cli.load_named = cli.load_named, images
savefig = matplotlib.figure.Figure.savefig
matplotlib.figure.Figure.savefig = save_small
gc.freeze()
gc.disable()

def run(job, output):
    os.chdir(job["folder"])
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    if not job["keeps_compiled"]:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if job["as_nobody"] and os.getuid() == 0:
        os.setresuid(65534, 65534, 65534)
    sys.argv = ["sdntk", *job["arguments"]]
    try:
        cli.main()
    except SystemExit as left:
        return left.code or 0
    except BaseException:
        traceback.print_exc()
        return 1

print("ready", flush=True)
outputs = {}
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        with open(outputs.pop(job["wait"]), errors="replace") as output:
            said = output.read()
        status = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
        print(json.dumps([status, said]), flush=True)
        continue
    read, write = os.pipe()  # a limit on the size of files is none on it
    process = os.fork()
    if not process:
        status = run(job, write)
        sys.stdout.flush()
        os._exit(status)
    os.close(write)
    outputs[process] = read
    print(json.dumps(process), flush=True)
"""

#: Every command at settings of a second or two, its folder, and its tables.
COMMANDS = {
    "illustrate": "illustrate --rounds 2 --out run",
    "ntk": "ntk --train 20 --held-out 10 --test 10 --rounds 2 --depth 1 --seeds 2 --tolerance 0.3"
    " --out run",
    "ntk --store": "ntk --train 20 --held-out 10 --test 10 --rounds 2 --depth 1 --seeds 2"
    " --tolerance 0.3 --method krylov --store tiles --out run",
    "compare": "compare --train 10 --test 10 --widths 4,8 --seeds 1 --rounds 1 --depth 1 --steps 5"
    " --out run",
    "networks": "networks --widths 8 --rounds 2 --seeds 1 --steps 4 --batch-size 5 --train 20"
    " --held-out 10 --test 10 --weight-decay 0.001 --tolerance 0.3 --out run",
    "networks --figure": "networks --figure 6 --network small --dataset cifar10 --rounds 2"
    " --seeds 2 --steps 4 --batch-size 5 --train 20 --test 10 --measure-every 2 --at-once 1"
    " --out run",
}


class Server:
    """Starts commands, waits for them, kills them."""

    def __init__(self):
        keeps_all = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "160", **keeps_all},
        )
        assert self.process.stdout.readline() == "ready\n"

    def _ask(self, **job):
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, command, folder, *, limits=None, as_nobody=False, keeps_compiled=False):
        """Start a command of COMMANDS, or any other, in a folder; its process.

        It adds nothing to the cache of compiled programs: one that is killed, or meets a full disk,
        would leave half a program in it.
        """
        return self._ask(
            arguments=COMMANDS.get(command, command).split(),
            folder=str(folder),
            limits=limits or {},
            as_nobody=as_nobody,
            keeps_compiled=keeps_compiled,
        )

    def wait(self, process):
        """The exit status, or minus the signal that ended it; and what it said."""
        return self._ask(wait=process)

    def kill(self, process):
        """Whether it was still at work."""
        os.kill(process, signal.SIGKILL)
        return self.wait(process)[0] == -signal.SIGKILL

    def run(self, command, folder, **options):
        """Run to the end; its exit status, and what it said. What it compiles is kept."""
        return self.wait(self.start(command, folder, keeps_compiled=not options, **options))

    def close(self):
        """End it; its children have been waited for."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def records(folder):
    """What was recorded, but for times: tables (the CSV's too), configurations and figures' names;
    nothing half written.
    """
    found = {}
    for file in sorted((folder / "run").rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix in (".parquet", ".csv"):
            read = pd.read_csv if file.suffix == ".csv" else pd.read_parquet
            found[name] = read(file).drop(columns="seconds", errors="ignore")
        elif file.name == "config.json":
            found[name] = json.loads(file.read_text())["configuration"]
        elif file.suffix == ".png":
            found[name] = file.read_bytes()
    return found


def differences(a, b):
    """Where two runs did not record the same, bit by bit."""
    return [
        name for name in {*a, *b} if not (name in a and name in b and _is_same(a[name], b[name]))
    ]


def _is_same(a, b):
    return a.equals(b) if isinstance(a, pd.DataFrame) else a == b


def left_over(folder: Path):
    """Files that a finished run should have cleared away."""
    return [*folder.glob("run/**/checkpoints/*"), *folder.glob("run/**/.owner")]
