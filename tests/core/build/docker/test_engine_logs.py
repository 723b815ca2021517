"""Reading what the two builders print. The texts are in the form that real builders gave."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.build.docker.buildkit import PlainReader
from prefect_environments.core.build.docker.classic_log import ClassicReader, StepEnd
from prefect_environments.core.build.docker.log import BuildLog
from prefect_environments.core.progress import Progress
from prefect_environments.core.redact import remember

PLAIN = """\
#1 [internal] load build definition from Dockerfile
#1 sha256:95c7fdc1f34390eaa2413a407912dd488cc584ee916ad60bb6a31fecfa168540
#1 transferring dockerfile: 246B done
#1 DONE 0.0s

#2 [one 1/2] FROM registry.example.com/base:1
#2 CACHED

#3 [one 2/2] RUN make
#3 0.050 first

#4 [two 1/1] RUN other
#4 0.060 of the other

#3 [one 2/2] RUN make
#3 0.073 10%\r 50%\r100%
#3 0.080 \x1b[31mred\x1b[0m
#3 ...

#3 0.090 no end of line#3 ERROR: executor failed running [/bin/sh -c make]: exit code: 2
#4 CANCELED
------
 > [one 2/2] RUN make:
#3 0.090 no end of line
------
executor failed running [/bin/sh -c make]: exit code: 2
"""


class Steps(Progress):
    """Progress that remembers its steps."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def step(self, name: str) -> None:
        self.names.append(name)


def test_plain_output_is_read_into_steps_and_their_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Steps of the Dockerfile are progress, the builder's own are not; lines belong to their step."""
    caplog.set_level(logging.INFO)
    steps = Steps()
    log = BuildLog(steps)
    reader = PlainReader(log)
    for line in PLAIN.split("\n"):
        reader.read(line)
    assert steps.names == ["[one 1/2] FROM registry.example.com/base:1", "[one 2/2] RUN make", "[two 1/1] RUN other"]
    text = str(log.error())
    assert "failed at [one 2/2] RUN make: executor failed running [/bin/sh -c make]: exit code: 2" in text
    assert text.partition("last lines:\n")[2].split("\n") == ["    first", "    100%", "    red", "    no end of line"]
    # where a test before imported the tasks, caplog gets each record once more from the handler that they add
    records = {id(record): record for record in caplog.records}.values()
    lines = [record.getMessage() for record in records if record.levelno == logging.INFO]
    assert "of the other" in lines
    assert lines.count("no end of line") == 1


def test_what_no_step_says_is_in_the_error() -> None:
    """A docker command that fails before the first step."""
    log = BuildLog()
    for line in ("ERROR: Cannot connect to the engine", "unknown flag: --secret"):
        PlainReader(log).read(line)
    assert "Cannot connect to the engine\n    unknown flag: --secret" in str(log.error())


def test_lines_are_masked_and_of_bounded_length(caplog: pytest.LogCaptureFixture) -> None:
    """A secret is masked in a title, a line and a reason; an endless line is cut."""
    caplog.set_level(logging.DEBUG)
    remember("planted-in-log-4711")
    log = BuildLog()
    log.step("1", "[1/1] RUN echo planted-in-log-4711")
    log.line("1", "said planted-in-log-4711")
    log.line("1", "x" * 100_000)
    log.failed("1", "planted-in-log-4711 failed")
    assert "planted-in-log-4711" not in caplog.text + str(log.error())
    assert len(str(log.error())) < 3000


CLASSIC: list[dict[str, Any]] = [
    {"stream": "Step 1/5 : FROM registry.example.com/base:1"},
    {"stream": "\n"},
    {"status": "Pulling from base", "id": "1"},
    {"stream": " ---> 60a41a18aae5\n"},
    {"stream": "Step 2/5 : RUN one"},
    {"stream": "\n"},
    {"stream": " ---> Using cache\n"},
    {"stream": " ---> 111111111111\n"},
    {"stream": "Step 3/5 : RUN two"},
    {"stream": "\n"},
    {"stream": " ---> Running in a618e4985c27\n"},
    {"stream": "of two\nhalf"},
    {"stream": " a line\n"},
    {"stream": " ---> Running in bbbbbbbbbbbb\n"},
    {"stream": " ---> 999999999999\n"},
    {"stream": "Removing intermediate container a618e4985c27\n"},
    {"stream": " ---> 222222222222\n"},
    {"stream": "Step 4/5 : RUN three"},
    {"stream": "\n"},
    {"stream": " ---> Running in cccccccccccc\n"},
    {"stream": "of three"},
    {"error": "The command 'three' returned a non-zero code: 1", "errorDetail": {"code": 1}},
]


def test_messages_of_the_classic_builder_are_told_from_what_steps_print() -> None:
    """Which images the steps ended with, which of them this build made, and the container that runs now."""
    steps = Steps()
    reader = ClassicReader(BuildLog(steps))
    for message in CLASSIC:
        reader.read(message)
        if message.get("stream") == " ---> Running in bbbbbbbbbbbb\n":
            assert reader.container == "a618e4985c27"
    assert reader.container == "cccccccccccc"
    reader.end()
    assert reader.container == ""
    assert reader.ends == [
        StepEnd("60a41a18aae5", False),
        StepEnd("111111111111", False),
        StepEnd("222222222222", True),
    ]
    assert steps.names[1] == "[2/5] RUN one"
    text = str(reader.log.error())
    assert "failed at [4/5] RUN three: The command 'three' returned a non-zero code: 1" in text
    assert text.endswith("last lines:\n    of three")


def test_a_classic_build_ends_with_the_last_stages_image() -> None:
    """Each stage that ends tells its id; FROM scratch has none."""
    reader = ClassicReader(BuildLog())
    for message in (
        {"stream": "Step 1/2 : FROM scratch"},
        {"stream": "\n"},
        {"stream": " ---> \n"},
        {"stream": "Step 2/2 : COPY a /"},
        {"stream": "\n"},
        {"stream": " ---> 222222222222\n"},
        {"aux": {"ID": "sha256:" + "2" * 64}},
        {"stream": "Successfully built 222222222222\n"},
    ):
        reader.read(message)
    reader.end()
    assert reader.image == "sha256:" + "2" * 64
    assert reader.ends == [StepEnd("", False), StepEnd("222222222222", True)]
    assert not reader.log.has_failed()


_words = st.sampled_from(
    [*PLAIN.split("\n"), *(str(message.get("stream", "")) for message in CLASSIC), "#3", "#3 ", "# 1 x", "#3 ERROR"]
)


@given(st.lists(st.one_of(_words, st.text(max_size=60)), max_size=40))
def test_whatever_a_builder_prints_is_read_to_the_end(lines: list[str]) -> None:
    """No text stops the reading or the message about it, in either form."""
    log, classic = BuildLog(), ClassicReader(BuildLog())
    plain = PlainReader(log)
    for line in lines:
        plain.read(line)
        for message in ({"stream": line}, {"error": line}, {"status": line}, {"aux": None}, {}):
            classic.read(message)
    classic.end()
    assert "the Docker build failed" in str(log.error())
    assert "the Docker build failed" in str(classic.log.error())
