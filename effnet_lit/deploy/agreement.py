"""Whether an export answers as ``effnet predict`` does, and how fast."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from effnet_lit.config import UserError
from effnet_lit.data.decode import DecodeError, decode
from effnet_lit.deploy.onnx_file import ask, session_of
from effnet_lit.deploy.predict import answer, is_sure
from effnet_lit.deploy.preparation import opened
from effnet_lit.model.modelfile import Header, ImageClassifier

File = tuple[str, Callable[[], bytes]]  # an image file's name, and what reads it
LARGEST_ERROR = 1e-3  # of a probability on the same pixels; sums in another order differ by a thousandth of it
TIMED = 30  # calls, after three that count for nothing


@dataclass
class Agreement:
    """How an export's answers (class, sure and unlike) compare with those of ``effnet predict``."""

    images: int = 0
    others: list[str] = field(default_factory=list)  # names of the photographs with another answer
    others_on_squares: int = 0  # images with another answer to the same pixels
    largest_difference: float = 0.0  # of a probability

    def sentence(self, kind: str) -> str:
        """For the screen."""
        told = f"; not on {', '.join(self.others[:3])}{' ...' if self.others[3:] else ''}" if self.others else ""
        return (
            f"the class and the doubts of effnet predict on {self.images - len(self.others)} of {self.images} {kind}, "
            f"probabilities within {self.largest_difference:.1g}{told}"
        )


def compare(
    classifier: ImageClassifier, model: onnx.ModelProto, files: Iterable[File], largest_error: float = LARGEST_ERROR
) -> Agreement:
    """The export on whole photographs, as an app opens them, beside ``effnet predict``; unreadable files are left out.

    Raises:
        UserError: a probability differs by more than ``largest_error`` on the same pixels.
    """
    session, header, found = session_of(model.SerializeToString()), classifier.header, Agreement()
    for name, square, photograph in readable(files, header):
        ((expected, unlike),) = answer(classifier, [square])
        wanted = (int(expected.argmax()), is_sure(float(expected.max()), header), unlike)
        on_square = ask(session, square)
        error = float(np.abs(on_square.probabilities - expected).max())
        if not error <= largest_error:  # also where it is no number
            raise UserError(
                f"Nothing was written: on {name} the exported network differs by {error:.3f} in a probability. Try the "
                "versions of torch, onnx and onnxscript in requirements.txt."
            )
        on_photograph = ask(session, photograph)
        difference = float(np.abs(on_photograph.probabilities - expected).max())
        found.images += 1
        found.others_on_squares += on_square.verdict != wanted
        found.others += [name] if on_photograph.verdict != wanted else []
        found.largest_difference = max(found.largest_difference, difference)
    return found


def readable(files: Iterable[File], header: Header) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of each file that both open: name, pixels as ``effnet predict`` sees them (S, S, 3), as an app does (H, W, 3)."""
    for name, read in files:
        try:
            content = read()
            photograph = np.asarray(opened(content))  # HEIC not, it needs an addition
            yield name, decode(content, header.eval_size, header.resize), photograph
        except (DecodeError, OSError):
            continue


def seconds_an_image(model: onnx.ModelProto, size: int) -> float:
    """Median time of one thread for one image of ``size`` x ``size``."""
    session, image = session_of(model.SerializeToString(), 1), np.zeros((1, size, size, 3), np.uint8)
    times = timeit.repeat(lambda: session.run(None, {"image": image}), number=1, repeat=3 + TIMED)
    return statistics.median(times[3:])
