"""Misfortunes for jobs under test: a folder for PYTHONPATH, whose settings are environment variables.

FLSL_TEST_STEP_SECONDS=s             each step takes that much longer
FLSL_TEST_RAISE=rank:step            that rank raises an error at that step
FLSL_TEST_DIE=rank:step:marker       that rank kills itself at that step, unless the file `marker` exists already
FLSL_TEST_EAT=rank:step:gigabytes    that rank takes memory at that step
FLSL_TEST_FAIL=word:marker           a command with that word among its arguments fails, unless the file `marker`
                                     exists already
FLSL_TEST_KILL_SAVE=step:marker      when half of that step's checkpoint is written, all processes of the job on that
                                     machine are killed, unless the file `marker` exists already
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from pathlib import Path


def _setting(name):
    return os.environ.get(f"FLSL_TEST_{name}", "").split(":", 2)


def _first_time(marker):
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _misfortune(rank, step):
    place = [str(rank), str(step)]
    time.sleep(float(os.environ.get("FLSL_TEST_STEP_SECONDS", "0")))
    if _setting("RAISE")[:2] == place:
        raise RuntimeError("the dog ate the batch")
    die = _setting("DIE")
    if die[:2] == place and _first_time(die[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    eat = _setting("EAT")
    if eat[:2] == place:
        eaten = bytearray(int(float(eat[2]) * 2**30))
        eaten[::4096] = bytes(len(eaten[::4096]))  # so that it is not only promised
        time.sleep(60)


def _patch_interrupt(module):
    agreed = module.StopRequest.agreed
    calls = [0]

    def with_misfortune(self):
        calls[0] += 1
        _misfortune(int(os.environ.get("RANK", "0")), calls[0])
        return agreed(self)

    module.StopRequest.agreed = with_misfortune


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "flsl.runtime.interrupt":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            _patch_interrupt(module)

        spec.loader.exec_module = exec_module
        return spec


def _kill_job():
    mine = f"SLURM_JOB_ID={os.environ['SLURM_JOB_ID']}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mine in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue
    os.kill(os.getpid(), signal.SIGKILL)


def _fatal_fsync(fd, fsync=os.fsync):
    step, marker = _setting("KILL_SAVE")
    name = Path(f"/proc/self/fd/{fd}").readlink()
    if name.name.startswith(f".step-{int(step):09d}") and _first_time(marker):
        os.truncate(name, name.stat().st_size // 2)
        _kill_job()
    return fsync(fd)


if any(name.startswith("FLSL_TEST_") for name in os.environ):
    sys.meta_path.insert(0, _Finder())
_word, *_marker = _setting("FAIL")
if _marker and _word in sys.orig_argv and _first_time(_marker[0]):
    os._exit(1)
if os.environ.get("FLSL_TEST_KILL_SAVE"):
    os.fsync = _fatal_fsync
