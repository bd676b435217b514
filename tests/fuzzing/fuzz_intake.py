"""Coverage-guided fuzzing of the front door with atheris: `python -m tests.fuzzing.fuzz_intake [libFuzzer options]`.

Begins with the corpus beside this file and with every good payload that there is; what it learns stays in the
folder given by `--learned` (default: a temporary one). A message that fails is left where `-artifact_prefix=`
says: put it into the corpus, and it is a test.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import atheris
import structlog

with atheris.instrument_imports(include=["bridge.intake"]):
    from tests.awkward import AWKWARD, places
    from tests.configurations import sources
    from tests.fuzzing.seeds import seeds
    from tests.fuzzing.target import MODES, judge, read

CORPUS = Path(__file__).parent / "corpus"
KEYS = sorted(sources())
#: Words that payloads and headers are made of.
WORDS = [
    "signed", "unsigned", "forged", "gzip", "null", "true", "false", "1e400", "-0", "1.0", "[]", "{}", "\\u0000",
    "\\ud800", "\\ufeff", ";", "2026-01-02T03:04:05Z", "1767323045000", "99999999999", "NaN", "propertyName", "fields",
    "key", "value", "data", "client", "id", "type", "events", "run", "clients",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--learned", type=Path)
    known, options = parser.parse_known_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        begin = Path(folder) / "begin"
        begin.mkdir()
        for name, message in seeds():
            (begin / name).write_bytes(message.write())
        words = Path(folder) / "words"
        words.write_text("".join(f'"{word.replace(chr(92), chr(92) * 2)}"\n' for word in WORDS), encoding="utf-8")
        learned = known.learned or Path(folder) / "learned"
        learned.mkdir(exist_ok=True)
        folders = [str(path) for path in (learned, CORPUS, begin)]
        atheris.Setup([sys.argv[0], f"-dict={words}", "-max_len=4096", *options, *folders], one, custom_mutator=mutate)
        atheris.Fuzz()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time change bytes; else change a place of the payload, or where and how the message goes."""
    chance = random.Random(seed)
    message = read(data)
    body = reshaped(message.body, chance) if chance.random() < 0.5 else None
    if body is None:
        return bytes(atheris.Mutate(data, max_size))
    if chance.random() < 0.1:
        message = replace(message, key=chance.choice(KEYS), mode=chance.choice(MODES), gzipped=chance.random() < 0.2)
    written = replace(message, body=body).write()
    return written if len(written) <= max_size else bytes(atheris.Mutate(data, max_size))


def reshaped(body: bytes, chance: random.Random) -> bytes | None:
    """A JSON body with one to three places changed, taken out or repeated; None for any other body."""
    try:
        value = json.loads(body)
        for _ in range(chance.randint(1, 3)):
            path = chance.choice(list(places(value)))
            if not path:
                value = chance.choice([[value], [value, value], {"data": value}, value])
                continue
            holder = functools.reduce(lambda inner, step: inner[step], path[:-1], value)
            match chance.randrange(4):
                case 0:
                    del holder[path[-1]]
                case 1 if isinstance(holder, list):
                    holder.append(copy.deepcopy(holder[path[-1]]))
                case _:
                    holder[path[-1]] = copy.deepcopy(chance.choice(AWKWARD))
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return None


def one(data: bytes) -> None:
    """One input of libFuzzer's."""
    judge(read(data))


if __name__ == "__main__":
    main()
