"""Two sides that take turns, each in a process of its own that waits while the other is timed.

A script names its sides and hands the command line over; a side is a function that prepares what is needed and returns
another one, which does the work that is timed:

    def peer():
        import torch
        ...
        def run(what, batch):
            ...
            return batch  # pieces of work done
        return run

    arguments = turns.arguments(__doc__, {"tfdet": ours, "peer": peer})
    left, right = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, "peer")
    turns.compare("inference", left, right, ("infer", 8), rounds=9)
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

HEADER = f"{'':40} {'tfdet':>11} {'peer':>11} {'ratio':>7}   (medians; spread of the ratio)"


def arguments(description, sides, add_more=lambda parser: None, peer=True):
    """The command line; a process that was started for one of the `sides` works here until it is no longer needed.

    Args:
        sides: {name: function () -> run}. run(*question) does what is timed and returns the number of pieces of work.
        add_more: given the parser, for what else the script wants to know; all sides are told.
        peer: whether a side is another package, which has an environment of its own.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if peer:
        parser.add_argument("--peer", required=True, help="python of an environment with requirements.txt")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    add_more(parser)
    parsed = parser.parse_args()
    if parsed.side:
        _work(sides[parsed.side]())
        sys.exit()
    return parsed


class Process:
    """One side of this script, in a process of its own that is asked for one timing at a time."""

    def __init__(self, python, side):
        command = [python, *sys.argv, "--side", side]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def time(self, *question):
        """Seconds for a piece of the work that the question (of what JSON can say) asks for."""
        print(json.dumps(question), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("answer "):
                return float(line.removeprefix("answer "))
        raise SystemExit(f"{' '.join(self.process.args)} died")

    def end(self):
        """Ends the process; gives its peak memory in GB."""
        peak = self.time("peak")
        self.process.stdin.close()
        self.process.wait()
        return peak


def compare(name, ours, theirs, question, rounds):
    """Times both in turns, after a first turn that does not count, and prints a line: below 1 ours is faster."""
    pairs = [(ours.time(*question), theirs.time(*question)) for _ in range(rounds + 1)][1:]
    ratios = [a / b for a, b in pairs]
    a, b = (statistics.median(times) * 1000 for times in zip(*pairs, strict=True))
    spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
    print(f"{name:40} {a:8.2f} ms {b:8.2f} ms {statistics.median(ratios):7.2f}   {spread}", flush=True)


def _work(run):
    for line in sys.stdin:
        question = json.loads(line)
        if question == ["peak"]:
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        else:
            start = time.perf_counter()
            pieces = run(*question)
            answer = (time.perf_counter() - start) / pieces
        print(f"answer {answer}", flush=True)
