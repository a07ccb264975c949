"""The engine that asks servers, against endpoints that do what endpoints do: refuse, break, die and come back."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.engines import server_engine, server_traffic
from vlm_rlaif.datagen.engines.clips import Clip, metadata, read_clip
from vlm_rlaif.datagen.engines.server_engine import ServerEngine
from vlm_rlaif.datagen.engines.server_video import frame_numbers, png
from vlm_rlaif.datagen.plan import ask_stage, context_spec
from vlm_rlaif.warehouse.config import Frames, Recipe, Sampling, key_parts
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Context, row_id
from vlm_rlaif.warehouse.store import Warehouse

_spec = importlib.util.spec_from_file_location("endpoint", Path(__file__).with_name("endpoint.py"))
assert _spec is not None and _spec.loader is not None
endpoint = importlib.util.module_from_spec(_spec)
sys.modules["endpoint"] = endpoint
_spec.loader.exec_module(endpoint)

Endpoint, Answer, chat, refuse, text_of = (
    endpoint.Endpoint, endpoint.Answer, endpoint.chat, endpoint.refuse, endpoint.text_of,
)  # fmt: skip
VLLM_MODEL = {"id": "tiny", "owned_by": "vllm", "root": "owner/tiny", "max_model_len": 2048}
MANY = 80
ABC = ("A", "B", "C")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_traffic, "BACKOFF_S", 0.01)
    monkeypatch.setattr(server_engine, "LOOK_S", 0.02)
    for name in ("VLLM_RLAIF_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def engine(*servers: Any, **options: Any) -> ServerEngine:
    return ServerEngine("served:tiny", servers=[server.url for server in servers], **options)


def rows(count: int) -> list[Request]:
    return [Request(str(i), f"row {i}") for i in range(count)]


def ask(asked: ServerEngine, requests: Iterable[Request]) -> dict[str, Completion]:
    return {done.request_id: done for done in asked.generate(requests)}


def texts(found: dict[str, Completion]) -> dict[str, str]:
    assert not [done.error for done in found.values() if done.error]
    return {key: done.text for key, done in found.items()}


EXPECTED = {str(i): f"ROW {i}" for i in range(MANY)}


def sometimes(wrong: Any, every: int = 5) -> Callable[[dict[str, Any], int], Any]:
    """The first time, one in so many requests goes wrong."""

    def script(body: dict[str, Any], before: int) -> Any:
        number = int(text_of(body).split()[1])
        return wrong if number % every == 0 and before == 0 else chat(text_of(body).upper())

    return script


def test_every_request_is_answered_once() -> None:
    with Endpoint() as server:
        assert texts(ask(engine(server), rows(MANY))) == EXPECTED
        assert len(server.asked) == MANY


def test_answers_come_as_they_are_ready_and_a_slow_neighbour_holds_nobody_up() -> None:
    def script(body: dict[str, Any], before: int) -> Any:
        return replace(chat(text_of(body).upper()), after_s=2.0 if text_of(body) == "row 0" else 0.0)

    with Endpoint(script) as server:
        found = ask(engine(server), rows(MANY))
        assert texts(found) == EXPECTED
        assert list(found)[-1] == "0"


@pytest.mark.parametrize(
    "wrong",
    [refuse(500, "oops"), refuse(502, "no backend"), Answer('{"choices": [{'), Answer({"choices": []}),
     Answer("", hang_up=True), refuse(503, "busy"), refuse(408, "too slow")],
    ids=["500", "502", "half a JSON", "no choices", "lost connection", "503", "408"],
)  # fmt: skip
def test_what_goes_wrong_once_is_asked_again(wrong: Any) -> None:
    with Endpoint(sometimes(wrong)) as server:
        assert texts(ask(engine(server), rows(MANY))) == EXPECTED
        assert len(server.asked) == MANY + MANY // 5


def test_a_row_that_always_goes_wrong_is_a_failure_with_the_servers_words() -> None:
    def script(body: dict[str, Any], before: int) -> Any:
        return refuse(500, "CUDA error") if text_of(body) == "row 3" else chat("fine")

    with Endpoint(script) as server:
        found = ask(engine(server, retries=2), rows(10))
        assert found.pop("3").error == "HTTP 500: CUDA error (asked 3 times)"
        assert set(texts(found).values()) == {"fine"}
        assert sum(text_of(body) == "row 3" for body in server.asked) == 3


def test_too_many_requests_are_sent_again_when_the_server_says() -> None:
    times: dict[str, list[float]] = {}

    def script(body: dict[str, Any], before: int) -> Any:
        times.setdefault(text_of(body), []).append(time.monotonic())
        return refuse(429, "slow down", Retry_After="0.3") if before == 0 else chat(text_of(body).upper())

    with Endpoint(script) as server:
        assert texts(ask(engine(server, retries=0), rows(5))) == {str(i): f"ROW {i}" for i in range(5)}
    assert all(second - first > 0.29 for first, second in times.values())


def test_an_api_that_allows_ten_at_a_time_is_soon_asked_for_no_more() -> None:
    with Endpoint() as server:
        server.script = lambda body, before: (
            refuse(429, "too many") if server.in_flight >= 10 else replace(chat("fine"), after_s=0.02)
        )
        assert len(texts(ask(engine(server), rows(300)))) == 300
        assert server.most_in_flight <= 33 and len(server.asked) < 300 + 80


def test_a_request_that_is_refused_is_a_failure_and_not_asked_again() -> None:
    with Endpoint(lambda body, before: refuse(400, "temperature must be below 2")) as server:
        found = ask(engine(server), rows(3))
        assert {done.error for done in found.values()} == {"HTTP 400: temperature must be below 2"}
        assert {done.error_kind for done in found.values()} == {"engine"} and len(server.asked) == 3


def test_a_prompt_that_is_too_long_says_how_long() -> None:
    words = "This model's maximum context length is exceeded: your request has 5000 input tokens."
    with Endpoint(lambda body, before: refuse(400, words)) as server:
        [done] = ask(engine(server), rows(1)).values()
        assert done.error_kind == "too_long"
        assert "5000 input tokens" in done.error and "The server takes 2048 tokens" in done.error


def test_an_answer_that_was_cut_off_or_ended_otherwise_says_so() -> None:
    with Endpoint(lambda body, before: chat("half an", finish="length", cached=5)) as server:
        asked = engine(server)
        [done] = ask(asked, rows(1)).values()
        assert (done.finish, done.tokens_in, done.tokens_out, done.cached_tokens) == ("length", 7, 3, 5)
        assert asked.prefix_cache
    with Endpoint(lambda body, before: chat("", finish="content_filter")) as server:
        [done] = ask(engine(server), rows(1)).values()
        assert done.error == "The server ended the request: content_filter."


def test_the_key_comes_from_the_environment_and_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Endpoint(key="sesame") as server:
        with pytest.raises(UserError, match="wants a key") as error:
            engine(server)
        assert str(error.value).endswith("export VLLM_RLAIF_API_KEY=...")
        monkeypatch.setenv("OPENAI_API_KEY", "wrong-secret")
        with pytest.raises(UserError, match="refused the key in OPENAI_API_KEY") as error:
            engine(server)
        assert "wrong-secret" not in str(error.value)
        monkeypatch.setenv("VLLM_RLAIF_API_KEY", "sesame")
        assert texts(ask(engine(server), rows(MANY))) == EXPECTED


def test_a_key_that_is_refused_in_the_middle_ends_the_job() -> None:
    with Endpoint(lambda body, before: refuse(401, "expired")) as server:
        asked = engine(server)
        with pytest.raises(UserError, match="wants a key"):
            ask(asked, rows(100))


def test_a_model_that_is_not_served_names_those_that_are() -> None:
    with (
        Endpoint(models=[{"id": "big"}, {"id": "small"}]) as server,
        pytest.raises(UserError, match=r"does not serve served:tiny\.\nIt serves: big, small\.\n--model served:big"),
    ):
        engine(server)


@pytest.mark.parametrize(
    "card", [{"id": "x", "root": "FOLDER"}, {"id": "FOLDER"}, {"id": "x", "root": "/other/place/m"}]
)
def test_a_folder_is_found_by_the_name_it_was_loaded_from(card: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    card = {name: value.replace("FOLDER", str(folder)) for name, value in card.items()}
    with Endpoint(models=[{"id": "another"}, card]) as server:
        asked = ServerEngine(str(folder), servers=[server.url])
        assert texts(ask(asked, rows(MANY))) == EXPECTED
        assert {body["model"] for body in server.asked} == {card["id"]}


def test_an_address_may_leave_the_v1_out_and_nonsense_is_told() -> None:
    with Endpoint() as server:
        asked = ServerEngine("served:tiny", servers=[server.url.removesuffix("/v1") + "/"])
        assert texts(ask(asked, rows(MANY))) == EXPECTED
    for address in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(UserError, match="that is no address"):
            ServerEngine("served:tiny", servers=[address])


def test_no_server_at_the_start_is_told_at_once() -> None:
    with Endpoint() as server:
        pass
    with pytest.raises(UserError, match=r"No server answers:\n.*refused(.|\n)*vllm serve tiny --port 8000"):
        engine(server)


def test_a_page_that_is_no_api_is_told() -> None:
    with Endpoint() as server:
        server.pages["/v1/models"] = lambda body: Answer("<html>hello</html>")
        with pytest.raises(UserError, match="No server answers"):
            engine(server)


def slowly(body: dict[str, Any], before: int) -> Any:
    return replace(chat(text_of(body).upper()), after_s=0.02)


def test_a_server_that_dies_and_comes_back_costs_no_row() -> None:
    with Endpoint(slowly) as server:
        found = {}
        for done in engine(server, retries=1).generate(rows(MANY)):
            found[done.request_id] = done
            if len(found) == 30:
                server.stop()
                threading.Timer(0.3, server.start).start()
        assert texts(found) == EXPECTED


def test_a_server_that_is_down_for_good_ends_the_job_and_what_is_finished_stands() -> None:
    with Endpoint(slowly) as server:
        asked, found = engine(server, patience_s=0.5), {}
        with pytest.raises(UserError, match=r"No server has answered for(.|\n)*the same command continues"):
            for done in asked.generate(rows(MANY)):
                found[done.request_id] = done
                if len(found) == 30:
                    server.stop()
        assert 30 <= len(texts(found)) < MANY


def test_a_router_without_servers_behind_it_costs_no_row() -> None:
    with Endpoint(lambda body, before: refuse(503, "no healthy upstream")) as server:
        asked, found = engine(server, patience_s=0.3, retries=1), []
        with pytest.raises(UserError, match="no healthy upstream"):
            found += asked.generate(rows(20))
        assert found == []


def test_the_requests_of_a_dead_server_move_to_the_other_one() -> None:
    with Endpoint(slowly) as one, Endpoint(slowly) as other:
        found = {}
        for done in engine(one, other).generate(rows(MANY)):
            found[done.request_id] = done
            if len(found) == 40:
                one.stop()
        assert texts(found) == EXPECTED
        assert len(other.asked) > MANY / 2


def test_a_server_that_comes_up_later_joins_in() -> None:
    with Endpoint(slowly) as one, Endpoint(slowly) as other:
        other.stop()
        asked, found = engine(one, other, concurrency=4), {}
        for done in asked.generate(rows(MANY)):
            found[done.request_id] = done
            if len(found) == 20:
                other.start()
        assert texts(found) == EXPECTED
        assert other.asked


def test_another_model_at_the_same_address_ends_the_job() -> None:
    with Endpoint(slowly) as server:
        found = []
        with pytest.raises(UserError, match="does not serve"):
            for done in engine(server).generate(rows(MANY)):
                found.append(done)
                if len(found) == 30:
                    server.stop()
                    server.models = [{"id": "another"}]
                    threading.Timer(0.3, server.start).start()


def test_only_as_many_requests_are_taken_as_can_be_used_soon() -> None:
    taken, given, most = 0, 0, 0

    def source() -> Iterator[Request]:
        nonlocal taken
        for request in rows(600):
            taken += 1
            yield request

    with Endpoint() as server:
        for _ in engine(server, max_in_flight=16).generate(source()):
            given += 1
            most = max(most, taken - given)
    assert given == 600
    assert most <= 64 + 32 + 16 + 8  # what waits for the engine, is ready, and is in flight


def test_a_busy_caller_leaves_no_slot_idle() -> None:
    with Endpoint(slowly) as server:
        stream = engine(server, concurrency=4).generate(rows(100))
        next(stream)
        time.sleep(0.5)  # the caller writes to its warehouse, say
        assert len(server.asked) >= 24
        stream.close()


def test_a_stream_that_is_left_early_leaves_no_thread_and_no_request() -> None:
    def script(body: dict[str, Any], before: int) -> Any:
        return replace(chat("fine"), after_s=0.0 if text_of(body) == "row 0" else 30.0)

    with Endpoint(script) as server:
        asked = engine(server)
        for interrupted in (False, True):
            stream, begun = asked.generate(rows(50)), time.monotonic()
            next(stream)
            with contextlib.suppress(KeyboardInterrupt):
                stream.throw(KeyboardInterrupt) if interrupted else stream.close()
            assert time.monotonic() - begun < 5
            assert not [thread for thread in threading.enumerate() if thread.name == "servers"]
        server.script = endpoint.echo
        assert texts(ask(asked, rows(MANY))) == EXPECTED


def test_where_the_time_goes_is_told() -> None:
    with Endpoint(lambda body, before: replace(chat("fine"), after_s=0.1)) as server:
        asked = engine(server, concurrency=8)
        asked.meter.reset()
        ask(asked, rows(MANY))
        assert asked.meter.bound_by() == "engine", asked.meter.seconds()

        def dawdling() -> Iterator[Request]:
            for request in rows(20):
                time.sleep(0.02)
                yield request

        asked.meter.reset()
        ask(asked, dawdling())
        assert asked.meter.bound_by() == "prompt"


@pytest.fixture(scope="module")
def videos(shapes_folder: Path) -> list[VideoPart]:
    return [VideoPart(shapes_folder / f"{i}.mp4", Frames(count=2, size=32)) for i in range(3)]


def about(videos: list[VideoPart], each: int) -> list[Request]:
    return [Request(f"{v}.{i}", f"{v} {i}", video=video) for v, video in enumerate(videos) for i in range(each)]


def test_each_video_goes_to_one_server_and_both_have_work(videos: list[VideoPart]) -> None:
    parts = [replace(videos[v % 3], video_id=f"video {v}") for v in range(12)]
    with Endpoint(slowly) as one, Endpoint(slowly) as other:
        assert len(texts(ask(engine(one, other, concurrency=8), about(parts, 6)))) == 72
        seen = [{text_of(body).split()[0] for body in server.asked} for server in (one, other)]
        assert len(seen[0]) >= 3 and len(seen[1]) >= 3 and not seen[0] & seen[1]


def test_a_server_without_work_takes_a_video_over(videos: list[VideoPart]) -> None:
    with Endpoint(slowly) as one, Endpoint(slowly) as other:
        requests = about(videos[:1], 100)
        assert len(texts(ask(engine(one, other, concurrency=4), requests))) == 100
        assert min(len(one.asked), len(other.asked)) > 20


def pictures(body: dict[str, Any]) -> list[np.ndarray]:
    """The images in a request's message, decoded; from parts of either kind."""
    urls: list[str] = []
    for part in body["messages"][-1]["content"]:
        if part["type"] == "image_url":
            urls.append(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
        elif part["type"] == "video_url":
            urls += part["video_url"]["url"].removeprefix("data:video/jpeg;base64,").split(",")
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url, validate=True)))) for url in urls]


def test_frames_arrive_as_images_pixel_by_pixel_before_the_text(videos: list[VideoPart]) -> None:
    with Endpoint() as server:
        request = Request("1", "what 'is' \"it\" ?\né", "be brief", video=videos[0])
        assert texts(ask(engine(server), [request])) == {"1": "WHAT 'IS' \"IT\" ?\nÉ"}
        [body] = server.asked
        assert [m["role"] for m in body["messages"]] == ["system", "user"]
        assert [part["type"] for part in body["messages"][1]["content"]] == ["image_url", "image_url", "text"]
        np.testing.assert_array_equal(np.stack(pictures(body)), read_clip(videos[0]).frames)


def test_vllm_is_given_the_frames_as_one_video_with_their_times(videos: list[VideoPart]) -> None:
    part = replace(videos[0], frames=Frames(count=3, size=32, repeat=2), start_s=1.0, end_s=4.0)
    with Endpoint(models=[VLLM_MODEL]) as server:
        ask(engine(server), [Request("1", "what is it ?", video=part, sampling=Sampling(temperature=1.0), seed=5)])
        [body] = server.asked
        clip = read_clip(part)
        np.testing.assert_array_equal(np.stack(pictures(body)), clip.frames)
        said = body["media_io_kwargs"]["video"]
        assert [n / said["fps"] for n in said["frames_indices"]] == list(clip.times_s)
        assert said["num_frames"] == -1 and said["do_sample_frames"] is False
        assert (body["top_k"], body["repetition_penalty"], body["seed"]) == (0, 1.0, 5)


def test_a_vllm_that_takes_no_times_says_how_to_start_it(videos: list[VideoPart]) -> None:
    words = "media_io_kwargs are disabled. Start the server with --trust-request-mm-kwargs."
    with Endpoint(lambda body, before: refuse(400, words), models=[VLLM_MODEL]) as server:
        asked = engine(server)
        with pytest.raises(UserError, match=r"vllm serve \.\.\. --trust-request-mm-kwargs"):
            ask(asked, about(videos, 1))


@pytest.mark.parametrize(
    "times", [(0.5, 1.5, 2.5), (0.0,), (100.1, 100.2, 100.35), (0.25, 0.25, 7.0), (3599.96, 3600.1)]
)
def test_whole_numbers_tell_the_same_times_and_the_same_rate(times: tuple[float, ...]) -> None:
    clip = Clip(np.zeros((len(times), 2, 2, 3), np.uint8), times)
    exact, whole = metadata(clip), frame_numbers(clip)
    assert all(isinstance(n, int) and n < 2**53 for n in whole["frames_indices"])
    assert [n / whole["fps"] for n in whole["frames_indices"]] == pytest.approx(
        [n / exact["fps"] for n in exact["frames_indices"]], rel=1e-14
    )
    rate = len(times) / whole["total_num_frames"] * whole["fps"]
    assert rate == pytest.approx(exact["fps"], rel=1e-12) and whole["duration"] == exact["duration"]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (31, 17), (64, 48)])
def test_a_png_is_what_everybody_else_reads(shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(png(frame)))
    image.load()
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), frame)


def test_a_file_that_cannot_be_decoded_is_one_failure(videos: list[VideoPart], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with Endpoint() as server:
        found = ask(engine(server), about([videos[0], replace(videos[0], path=broken), videos[1]], 1))
        failed = found.pop("1.0")
        assert failed.error_kind == "video" and str(broken) in failed.error
        assert len(texts(found)) == 2


def test_the_file_itself_is_sent_where_the_server_samples(videos: list[VideoPart]) -> None:
    part = replace(videos[0], frames=Frames(count=5, sampler="server"))

    def no_files(body: dict[str, Any], before: int) -> Any:
        url = body["messages"][-1]["content"][0]["video_url"]["url"]
        return refuse(400, "use --allowed-local-media-path") if url.startswith("file:") else chat("seen")

    with Endpoint(no_files, models=[VLLM_MODEL]) as server:
        found = ask(engine(server), [Request(str(i), f"{i} ?", video=part) for i in range(50)])
        assert set(texts(found).values()) == {"seen"}
        url = server.asked[-1]["messages"][-1]["content"][0]["video_url"]["url"]
        assert base64.b64decode(url.removeprefix("data:video/mp4;base64,")) == part.path.read_bytes()
        assert server.asked[-1]["media_io_kwargs"] == {"video": {"num_frames": 5}}
        server.script = endpoint.echo
        server.asked.clear()
        ask(engine(server), [Request("1", "what ?", video=part)])
        assert server.asked[0]["messages"][-1]["content"][0]["video_url"]["url"] == part.path.as_uri()
        with pytest.raises(UserError, match="sends whole videos"):
            ask(engine(server), [Request("1", "what ?", video=replace(part, start_s=1.0))])
        far = ask(engine(server), [Request("1", "?", video=replace(part, path=Path("/no/file.mp4")))])
        assert texts(far) == {"1": "?"}  # the server may see what we do not
    with Endpoint() as server, pytest.raises(UserError, match="needs vLLM"):
        ask(engine(server), [Request("1", "what ?", video=part)])
    with pytest.raises(UserError, match="takes the frames from the file itself"):
        read_clip(part)


def test_who_takes_the_frames_is_part_of_the_key_where_it_is_not_us() -> None:
    assert "sampler" not in key_parts(Frames(count=5))
    assert key_parts(Frames(count=5, sampler="server"))["sampler"] == "server"
    for wrong in ({"sampler": "nobody"}, {"sampler": "server", "size": 32}, {"sampler": "server", "repeat": 2}):
        with pytest.raises(ValueError, match="sampler"):
            Frames(count=5, **wrong)  # type: ignore[arg-type]


def top(**logprobs: float) -> list[Any]:
    """Log-probabilities of the first token as servers give them; `_A` stands for ` A`."""
    listed = [{"token": name.replace("_", " "), "logprob": value} for name, value in logprobs.items()]
    return [{**listed[0], "top_logprobs": listed}]


def judged(logprobs: list[Any] | None, **options: Any) -> Completion:
    with Endpoint(lambda body, before: chat("the reply", logprobs=logprobs), **options) as server:
        [done] = ask(engine(server), [Request("1", "A or B ?", choices=ABC)]).values()
        [body] = server.asked
        assert (body["max_tokens"], body["temperature"], body["top_logprobs"]) == (1, 0, 20)
        assert "seed" not in body
        return done


def test_labels_get_the_log_probabilities_of_the_first_token() -> None:
    done = judged(top(B=-0.3, A=-1.5, x=-3.0, C=-4.0))
    assert (done.text, done.logprob, done.choice_logprobs) == ("B", -0.3, {"A": -1.5, "B": -0.3, "C": -4.0})


def test_a_label_that_is_not_listed_is_as_likely_as_the_last_one_that_is() -> None:
    assert judged(top(A=-0.1, x=-3.0, y=-9.0)).choice_logprobs == {"A": -0.1, "B": -9.0, "C": -9.0}


def test_a_label_with_a_space_before_it_counts_where_it_alone_is_listed() -> None:
    assert judged(top(A=-0.1, _A=-0.2, _B=-3.0, C=-4.0)).choice_logprobs == {"A": -0.1, "B": -3.0, "C": -4.0}


@pytest.mark.parametrize("logprobs", [None, [], top(x=-0.1, y=-3.0)], ids=["none", "empty", "others"])
def test_without_any_label_there_is_no_verdict(logprobs: Any) -> None:
    done = judged(logprobs)
    assert (done.text, done.choice_logprobs, done.error) == ("the reply", {}, "")


def vllm(script: Any) -> Any:
    server = Endpoint(script, models=[VLLM_MODEL])
    server.pages["/tokenize"] = lambda body: Answer({"tokens": [ord(body["prompt"])]})
    return server


def test_vllm_is_asked_for_the_very_tokens_of_the_labels() -> None:
    logprobs = [{"token": "token_id:66", "logprob": -0.1, "top_logprobs": [
        {"token": "token_id:66", "logprob": -0.1}, {"token": "token_id:65", "logprob": -2.5},
        {"token": "token_id:67", "logprob": -14.0}]}]  # fmt: skip
    with vllm(lambda body, before: chat("B", logprobs=logprobs)) as server:
        [done] = ask(engine(server), [Request("1", "A or B ?", choices=ABC)]).values()
        assert server.asked[0]["logprob_token_ids"] == [65, 66, 67]
        assert done.choice_logprobs == {"A": -2.5, "B": -0.1, "C": -14.0}
        server.pages["/tokenize"] = lambda body: Answer({"tokens": [1, 2]})
        with pytest.raises(UserError, match="The label 'A' is 2 tokens"):
            ask(engine(server), [Request("1", "A or B ?", choices=ABC)])


def test_vllm_is_held_to_the_labels_when_it_lists_none_of_them() -> None:
    def script(body: dict[str, Any], before: int) -> Any:
        held = body.get("structured_outputs") == {"choice": list(ABC)}
        return chat("A", logprobs=top(A=-0.2, B=-2.0, C=-math.inf)) if held else chat("x", logprobs=top(x=-0.1))

    with Endpoint(script, models=[VLLM_MODEL]) as server:
        [done] = ask(engine(server), [Request("1", "A or B ?", choices=ABC)]).values()
        assert done.text == "A" and set(done.choice_logprobs) == set(ABC) and len(server.asked) == 2


SCHEMA = json.dumps({"type": "object", "properties": {"score": {"type": "integer"}}})


def test_a_schema_is_sent_and_left_out_where_it_is_refused() -> None:
    def script(body: dict[str, Any], before: int) -> Any:
        return refuse(400, "response_format is not supported") if "response_format" in body else chat('{"score": 4}')

    requests = [replace(request, json_schema=SCHEMA) for request in rows(60)]
    with Endpoint(script) as server:
        assert set(texts(ask(engine(server), requests)).values()) == {'{"score": 4}'}
        assert server.asked[0]["response_format"]["json_schema"]["schema"] == json.loads(SCHEMA)
        assert len(server.asked) <= 60 + 64
    with Endpoint(models=[VLLM_MODEL]) as server:
        ask(engine(server), requests[:1])
        assert server.asked[0]["structured_outputs"]["json"] == json.loads(SCHEMA)


def test_another_name_for_the_token_limit_and_missing_log_probabilities_are_learnt() -> None:
    def script(body: dict[str, Any], before: int) -> Any:
        if "max_tokens" in body:
            return refuse(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return refuse(400, "logprobs are not available") if body.get("logprobs") else chat("fine")

    with Endpoint(script) as server:
        found = ask(engine(server), rows(80))
        assert set(texts(found).values()) == {"fine"} and all(done.logprob is None for done in found.values())
        assert len(server.asked) <= 80 + 2 * 64  # as many as are in flight, for each of the two


def test_the_answers_log_probability_is_the_sum_over_its_tokens() -> None:
    tokens = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]
    with Endpoint(lambda body, before: chat("ab", logprobs=tokens)) as server:
        assert ask(engine(server), rows(1))["0"].logprob == -0.75


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return str(folder)


def test_an_adapter_is_asked_for_by_its_served_name(adapter: str) -> None:
    with Endpoint(models=[VLLM_MODEL, {"id": "lora1", "root": adapter, "parent": "tiny"}]) as server:
        ask(engine(server), [Request("1", "x", adapter=adapter), Request("2", "y")])
        assert {text_of(body): body["model"] for body in server.asked} == {"x": "lora1", "y": "tiny"}


def test_an_adapter_that_is_not_served_is_loaded_where_that_is_allowed(adapter: str) -> None:
    with Endpoint(models=[VLLM_MODEL]) as server:
        with pytest.raises(UserError, match=f"Start it with --enable-lora --lora-modules tuned={adapter}"):
            ask(engine(server), [Request("1", "x", adapter=adapter)])
        loaded: list[dict[str, Any]] = []
        server.pages["/v1/load_lora_adapter"] = lambda body: loaded.append(body) or Answer("ok")
        ask(engine(server), [Request("1", "x", adapter=adapter)])
        assert loaded[0]["lora_path"] == adapter
        assert server.asked[0]["model"] == loaded[0]["lora_name"]


def test_a_server_that_tells_how_full_it_is_gets_a_short_queue() -> None:
    with Endpoint(slowly, models=[VLLM_MODEL]) as server:
        server.pages["/metrics"] = lambda body: Answer(
            f'vllm:num_requests_running{{engine="0"}} {min(16, server.in_flight)}.0\n'
            f'vllm:num_requests_waiting{{engine="0"}} {max(0, server.in_flight - 16)}.0\n'
        )
        server.script = lambda body, before: replace(chat("fine"), after_s=0.2)
        asked = engine(server)
        assert len(texts(ask(asked, rows(200)))) == 200
        assert 16 <= asked.servers[0].window.limit <= 24


def test_a_stage_runs_on_a_server_from_the_command_line(
    asked: Warehouse, recipe: Recipe, recipe_file: Path, command: Callable[..., Any]
) -> None:
    contexts = [
        Context(
            context_id=row_id("context", name), video_id=row_id("video", name), spec_id=context_spec(recipe).spec_id,
            caption_ids=(), text=f"a {name}", run_id="test",
        )
        for name in ("cat", "dog", "owl")
    ]  # fmt: skip
    asked.append(contexts)
    asked.execute("DELETE FROM questions")
    spec = ask_stage(recipe).spec
    with Endpoint(lambda body, before: chat("what is it ?"), models=[{"id": "m", "root": spec.model}]) as server:
        done = command("datagen", "ask", asked.path, "--recipe", recipe_file, "--server", server.url)
        assert (done.code, done.err) == (0, ""), done
        assert asked.value("SELECT count(*) FROM questions WHERE spec_id = ?", [spec.spec_id]) == 3
        assert asked.value("SELECT engine FROM runs") == "server"
        again = command("datagen", "ask", asked.path, "--recipe", recipe_file, "--server", "nobody is asked")
        assert (again.code, again.err) == (0, "")
        asked.execute("DELETE FROM questions")
        wrong = command(
            "datagen", "ask", asked.path, "--recipe", recipe_file, "--server", server.url, "--engine-option", "many=3"
        )
        assert wrong.code == 2 and "many" in wrong.err
