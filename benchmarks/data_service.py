"""Training input of SSD300 by two workers of a tf.data service on this machine against the same pipeline inside the
training process: time an image, from JPEG files to batches, as a ratio.

    python benchmarks/data_service.py --peer python --data voc:BCCD

The peer is tfdet itself, without the service; both sides make the same batches, bit for bit.
"""

import subprocess
import sys

import turns

BATCH, STEPS, WORKERS = 16, 60, 2


def main():
    arguments = turns.arguments(__doc__, SIDES, lambda parser: parser.add_argument("--data", required=True))
    processes, address = start_service()
    try:
        served, alone = turns.Process(sys.executable, "service"), turns.Process(arguments.peer, "alone")
        print(turns.HEADER)
        turns.compare(f"input by {WORKERS} workers, batch {BATCH}", served, alone, (arguments.data, address), rounds=5)
        served.end(), alone.end()
    finally:
        for process in processes:
            process.terminate()


def start_service():
    """(its processes, the dispatcher's address), once all are ready."""
    command = [sys.executable, "-m", "tfdet", "data-service"]

    def start(*role):
        process = subprocess.Popen([*command, *role], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return process, process.stdout.readline().split()[-1]

    dispatcher, address = start("dispatcher", "--port", "0")
    workers = [start("worker", "--dispatcher", address)[0] for _ in range(WORKERS)]
    return [dispatcher, *workers], address


def side(with_service):
    import tfdet

    batches = []

    def run(data, address):
        if not batches:
            train = tfdet.load_dataset(data, split="train", on_error="skip")
            detector = tfdet.ssd300(train.num_classes, "vgg_slim")  # what it is fed is the same on any backbone
            service = address if with_service else None
            batches.append(tfdet.training_batches(train, detector, BATCH, start_step=0, service=service))
        # Begun anew in each turn: else workers would go on working while the other side is timed.
        return sum(len(images) for images, _ in batches[0].take(STEPS))

    return run


SIDES = {"service": lambda: side(True), "alone": lambda: side(False)}

if __name__ == "__main__":
    main()
