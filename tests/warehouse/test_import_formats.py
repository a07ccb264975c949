"""A record of each format says what its data set means by it, and one that does not fit says why."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports import formats as exports
from vlm_rlaif.warehouse.intake.conversations import VIDEO_KEYS, question_text, video_of
from vlm_rlaif.warehouse.intake.formats import FORMATS, format_named, recognise, resembles
from vlm_rlaif.warehouse.intake.meanings import COLUMNS, Asked, Compared, read_columns

HUMAN, GPT = {"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "A cat."}
USER, ASSISTANT = {"role": "user", "content": "<video>Who?"}, {"role": "assistant", "content": "A cat."}
BETTER = Compared(first="A cat.", second="A dog.", better="first")
QA = Asked(video="a.mp4", question="Who?", reference="A cat.")
PAIR = Asked(video="a.mp4", question="Who?", compared=BETTER)


def read(record: dict[str, Any]) -> tuple[str, list[Asked]]:
    """What `auto` makes of a record."""
    known = recognise([record])
    assert known is not None, resembles([record])
    return known.name, known.read(record)


# What each data set writes


@pytest.mark.parametrize(
    ("name", "record", "asked"),
    [
        ("vlm-rlaif", {"id": "1", "src_data": "x", "conversations": [HUMAN, GPT], "images": ["f/1.jpg", "f/2.jpg"]},
         [Asked(video=("f/1.jpg", "f/2.jpg"), question="Who?", reference="A cat.")]),
        ("vlm-rlaif", {"uid": 7, "conversations": [HUMAN, {"from": "gpt", "value": "\n"}], "images": ["f/1.jpg"]},
         [Asked(video=("f/1.jpg",), question="Who?")]),
        ("vlm-rlaif", {"id": "1", "conversations": [HUMAN, GPT], "images": ["f/1.jpg"], "preference": 2,
                       "output_1": {"value": "A cat."}, "output_2": {"from": "llava", "value": "A dog."}},
         [Asked(video=("f/1.jpg",), question="Who?",
                compared=Compared(first="A cat.", second="A dog.", better="second"))]),
        ("vlm-rlaif", {"video": "a.mp4", "conversations": [[HUMAN, GPT]], "output_1": "A cat.", "output_2": "A dog.",
                       "preference": "tie", "rationale": " Both see it. "},
         [Asked(video="a.mp4", question="Who?", compared=Compared(
             first="A cat.", second="A dog.", better="tie", rationale="Both see it."))]),
        ("llava", {"id": "1", "video": "a.mp4", "conversations": [
            {"from": "system", "value": "Be kind."}, HUMAN, GPT, {"from": "human", "value": "Why?"}]},
         [QA, Asked(video="a.mp4", question="Why?")]),
        ("llava", {"videos": ["a.mp4"], "messages": [USER, ASSISTANT]}, [QA]),
        ("llava", {"messages": [
            {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Who?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]}, [QA]),
        ("video-chatgpt", {"q": "Who?", "a": "A cat.", "video_id": "v_1"},
         [Asked(video="v_1", question="Who?", reference="A cat.")]),
        ("video-chatgpt", {"video_name": "v_1", "Q": "Who?", "A": "A cat."},
         [Asked(video="v_1", question="Who?", reference="A cat.")]),
        ("video-chatgpt", {"video_name": "v_1", "Q1": "Who?", "Q2": "Which animal?", "A": "A cat."},
         [Asked(video="v_1", question=text, reference="A cat.", kind="consistency")
          for text in ("Who?", "Which animal?")]),
        ("video-qa", {"video_name": "v_1", "question_1": "Who?", "question_2": "Which?", "question": "None",
                      "answer": "A cat."},
         [Asked(video="v_1", question=text, reference="A cat.", kind="consistency") for text in ("Who?", "Which?")]),
        ("video-qa", {"answer": "cat", "category_id": 14, "id": 158581, "question": "who?", "video_id": 6513},
         [Asked(video="6513", question="who?", reference="cat")]),
        ("video-qa", {"video_name": "x-1", "question": "is it a cat", "question_id": "v_1QIUV7WYKXg_3",
                      "answer": "yes", "type": 3},
         [Asked(video="x-1", question="is it a cat", reference="yes", kind="yes/no")]),
        ("video-qa", {"gif_name": "g_1", "question": "how many ?", "answer": "two", "type": "1", "vid_id": "FRAMEQA3",
                      "key": "25889"}, [Asked(video="g_1", question="how many ?", reference="two", kind="number")]),
        ("video-qa", {"gif_name": "g_1", "question": "what ?", "a1": "sit", "a2": "run", "answer": "1",
                      "vid_id": "ACTION4", "key": "26"},
         [Asked(video="g_1", question="what ?", reference="run", kind="action")]),
        ("video-qa", {"video": 401, "question": "why", "answer": 0, "type": "CW", "a0": "cold", "a1": "tired"},
         [Asked(video="401", question="why", reference="cold", kind="CW")]),
        ("video-qa", {"video_path": "a.mp4", "question": "Who?", "answer": "B", "options": ["A. Dogs.", "B. A cat."]},
         [QA]),
        ("trl", {"prompt": "<video>Who?", "chosen": "A cat.", "rejected": "A dog.", "videos": ["a.mp4"]}, [PAIR]),
        ("trl", {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "A dog."}],
                 "video": "a.mp4"}, [PAIR]),
        ("trl", {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "A dog."}],
                 "videos": [{"bytes": None, "path": "a.mp4"}]}, [PAIR]),
        ("trl", {"video": "a.mp4", "prompt": "Who?", "answer": "cat", "chosen": "A cat.", "rejected": "A dog.",
                 "chosen_score": 5.0, "rejected_score": 1.0},
         [Asked(video="a.mp4", question="Who?", reference="cat", compared=BETTER)]),
        ("llama-factory", {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "A dog."},
                          "videos": ["a.mp4"]}, [PAIR]),
        ("trl", {"messages": [USER], "chosen": ASSISTANT, "rejected": "A dog.", "video": "a.mp4"}, [PAIR]),
        ("llama-factory", {"instruction": "Who?", "input": "", "chosen": "A cat.", "rejected": "A dog.",
                          "videos": ["a.mp4"]}, [PAIR]),
        ("llama-factory", {"instruction": "<video>Who?", "input": "", "output": "A cat.", "videos": ["a.mp4"]}, [QA]),
        ("ms-swift", {"messages": [USER, ASSISTANT], "rejected_response": "A dog.", "videos": ["a.mp4"]}, [PAIR]),
        ("ms-swift", {"messages": [USER, ASSISTANT], "videos": ["a.mp4"],
                   "rejected_messages": [USER, {"role": "assistant", "content": "A dog."}]}, [PAIR]),
        ("ms-swift", {"query": "Who?", "response": "A cat.", "rejected_response": "A dog.", "video": "a.mp4"},
         [PAIR]),
        ("ms-swift", {"query": "Who?", "response": "A cat.", "videos": ["a.mp4"]}, [QA]),
        ("columns", {"video": "a.mp4", "question": "Who?", "response_a": "A cat.", "response_b": "A dog.",
                     "preference": "a"}, [PAIR]),
        ("columns", {"video": "a.mp4", "question": "Who?", "response_a": "A cat.", "response_b": "A dog.",
                     "preference": 1.0, "model_a": "m", "model_b": "n", "judge": "j", "kind": "who"},
         [Asked(video="a.mp4", question="Who?", kind="who", compared=Compared(
             first="A cat.", second="A dog.", better="first", models=("m", "n"), judge="j"))]),
    ],
)  # fmt: skip
def test_a_record_is_recognised_and_understood(name: str, record: dict[str, Any], asked: list[Asked]) -> None:
    assert read(record) == (name, asked)


@pytest.mark.parametrize("kind", exports.FORMATS.values(), ids=lambda kind: kind.name)
def test_what_export_writes_is_what_import_reads(kind: exports.Format) -> None:
    row = {
        "pair_id": "p", "judge": "j", "judge_prompt": "judge_v1", "choice": "b", "p_a": 0.25, "strength": 0.5,
        "split": "train", "kind": "who", "video_id": "v", "video": "a.mp4", "question_id": "q", "question": "Who?",
        "reference": "A cat.", "context": None, "text_a": "A dog.", "text_b": "A cat.", "tokens_a": 2, "tokens_b": 2,
    }  # fmt: skip
    name, (asked,) = read(kind.record(row) if kind.record else row)
    assert name in (kind.name, "trl" if kind.name == "llava" else "columns")
    assert (asked.video, asked.question) == ("a.mp4", "Who?")
    assert asked.compared is not None and asked.compared.judge == "j"
    texts = (asked.compared.first, asked.compared.second)
    assert texts[asked.compared.better == "second"] == "A cat." and set(texts) == {"A cat.", "A dog."}


def test_columns_may_have_any_names() -> None:
    names = {"video": "clip", "question": "Frage", "reference": "Antwort"}
    record = {"clip": "a.mp4", "Frage": "Who?", "Antwort": "A cat.", "question": "another one", "video": "b.mp4"}
    assert read_columns(record, names) == [QA]


@pytest.mark.parametrize(
    ("said", "better"),
    [
        (1, "first"),
        ("2", "second"),
        (2.0, "second"),
        ("A", "first"),
        (0, "tie"),
        ("tie", "tie"),
        ("model_b", "second"),
    ],
)
def test_a_preference_may_be_said_in_several_ways(said: object, better: str) -> None:
    record = {"video": "a.mp4", "question": "?", "response_a": "x", "response_b": "y", "preference": said}
    compared = read_columns(record, {})[0].compared
    assert compared is not None and compared.better == better


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("<video>\nWho?", "Who?"),
        ("Who?\n<image>", "Who?"),
        ("In <video> who?", "In who?"),
        ("<|vision_start|><|video_pad|><|vision_end|>Who?", "Who?"),
        ("<im_start><image><im_end>\nIs a < b > c ?", "Is a < b > c ?"),
        ("Is <b>this</b> bold?", "Is <b>this</b> bold?"),
    ],
)
def test_marks_of_frames_are_no_part_of_a_question(text: str, asked: str) -> None:
    assert question_text(text) == asked


# What does not fit


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"video": "a.mp4", "conversations": "Who?"}, "not a list of turns: 'Who?'"),
        ({"video": "a.mp4", "conversations": []}, "not a list of turns"),
        ({"video": "a.mp4", "conversations": ["Who?"]}, "a turn is not an object: 'Who?'"),
        ({"video": "a.mp4", "conversations": [{"from": "tool", "value": "x"}]}, "an unknown role: 'tool'"),
        ({"video": "a.mp4", "conversations": [{"from": "human", "value": ["x"]}, GPT]}, "a turn is not text"),
        ({"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>"}, GPT]}, "a question is empty"),
        ({"video": "a.mp4", "conversations": [GPT]}, "nobody asks anything"),
        ({"conversations": [HUMAN, GPT]}, "it names no video"),
        ({"conversations": [HUMAN, GPT], "image": "a.jpg"}, "about an image, not a video"),
        ({"conversations": [HUMAN, GPT], "videos": ["a.mp4", "b.mp4"]}, "names 2 videos"),
        ({"conversations": [HUMAN, GPT], "video": {"bytes": b"mp4"}}, "holds the video itself"),
        ({"conversations": [HUMAN, GPT], "video": "a\0.mp4"}, "holds a NUL character"),
        ({"conversations": [HUMAN, GPT], "video": "a\udcff.mp4"}, "is not UTF-8"),
        ({"conversations": [HUMAN, GPT], "images": [["a.jpg"], 3, {}]}, "holds the video itself"),
        ({"video": "a.mp4", "question": "Who?", "answer": True}, "its answer is not text: True"),
        ({"video": "a.mp4", "question": " ", "answer": "x"}, "its question is empty"),
        ({"video": "a.mp4", "question": "Who?", "answer": "5", "a0": "x", "a1": "y"}, "none of its 2 choices"),
        ({"video_id": "a", "q": "Who?", "a": ""}, "its answer is empty"),
        ({"video": "a.mp4", "prompt": "Who?", "chosen": "x", "rejected": "x"}, "the same words"),
        ({"video": "a.mp4", "prompt": "Who?", "chosen": "x", "rejected": None}, "the second response is empty"),
        ({"video": "a.mp4", "chosen": "x", "rejected": "y"}, "it has no `prompt`"),
        ({"video": "a.mp4", "chosen": [USER], "rejected": [USER]}, "does not end with the assistant"),
        ({"video": "a.mp4", "messages": [USER], "rejected_response": "y"}, "do not end with the assistant"),
        ({"video": "a.mp4", "conversations": [HUMAN], "output_1": "x", "output_2": "y", "preference": 3},
         "none of 1, 2 and tie: 3"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_says_why(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        read(record)
    assert reason in str(raised.value)


def test_an_unknown_format_is_told_with_the_nearest_one() -> None:
    assert recognise([{"q": 1}, {}]) is None
    assert "The nearest format is video-chatgpt, whose records have q, a, video_id." in resembles([{"q": "Who?"}])
    assert resembles([{"x": 1}]) == "Its records have the keys ['x']."
    with pytest.raises(UserError, match=r"no format 'ms-swfit'\. Did you mean 'ms-swift'\?"):
        format_named("ms-swfit")


def test_the_format_is_that_of_most_records() -> None:
    known = recognise([{"x": 1}, {"q": "?", "a": "!"}, {"q": "?", "a": "!"}, {"question": "?", "video": "a.mp4"}])
    assert known is not None and known.name == "video-chatgpt"


KEYS = sorted(
    {key for known in FORMATS for key in known.typical} | {name for names in COLUMNS.values() for name in names}
)
HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3)
    | st.sampled_from(["1", "a.mp4", "<video>", "human", "gpt", "\0", "\udcff"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["from", "value", "role", "content", "text", "type", "video", "x"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=400)
@given(record=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), HOSTILE, max_size=8))
def test_whatever_a_record_holds_it_is_understood_or_refused(record: dict[str, Any]) -> None:
    for known in FORMATS:
        known.fits(record)
        try:
            found = known.read(record)
        except ValueError as reason:
            assert str(reason) and len(str(reason)) < 200
            continue
        assert found
        for asked in found:
            texts = [asked.question, *(asked.video if isinstance(asked.video, tuple) else (asked.video,))]
            texts += [asked.reference] if asked.reference is not None else []
            texts += [asked.compared.first, asked.compared.second] if asked.compared is not None else []
            assert all(text.strip() and text.encode() and "\0" not in text for text in texts)


@given(key=st.sampled_from(VIDEO_KEYS), value=HOSTILE)
def test_whatever_names_a_video_is_a_name_or_refused(key: str, value: Any) -> None:
    try:
        found = video_of({key: value})
    except ValueError:
        return
    assert found and not (isinstance(value, float) and math.isnan(value))
