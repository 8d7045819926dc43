"""The addresses of the page: what they answer, and that they hand out nothing but runs of the chosen folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from journal import FINISHED, HALVED, STARTED, records, step, whole_run
from web_pages import PORT, TOKEN, Asked, add_records, make_client, make_pages, write_run

from mlx_finetune.events import Notice, RunFailed, Sampled, to_json
from mlx_finetune.monitor.web.pages import MAX_POINTS, Pages
from mlx_finetune.monitor.web.shelf import Shelf
from mlx_finetune.monitor.web.tickets import Tickets
from mlx_finetune.rundir import EVENTS, LOCK, MANIFEST, take_lock

HOSTILE = "</script><img src=x onerror=alert(1)> \u202e\x1b[31m"


def get(client, path: str, status: int = 200, **headers: str) -> dict:
    answer = client.get(path, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapters = tmp_path / "adapters"
    write_run(adapters, "demo", whole_run())
    return adapters


def test_a_run_is_told_in_full(folder: Path) -> None:
    client = make_client(make_pages(folder, chosen="demo"))
    assert get(client, "/api/names") == {"names": ["demo"], "chosen": "demo", "version": "0.0"}
    status = get(client, "/api/runs/demo/status")["status"]
    assert status["state"] == "finished"
    assert (status["steps_done"], status["best"], status["eta"]) == (40, [30, 1.25], None)
    assert status["outcome"]["result_loss"] == 1.25
    assert (status["go_on"], status["talk"]) == (
        "mlxft train demo.toml --resume",
        f"cd here && mlxft chat {folder}/demo",
    )
    curves = get(client, "/api/runs/demo/curves")
    assert curves["curves"]["loss"][0] == [float(number) for number in range(1, 41)]
    assert curves["evaluations"] == [[0, 2.5], [30, 1.25], [40, 1.5]]
    assert curves["memory_limit_bytes"] == 8 * 10**9
    (row,) = get(client, "/api/runs")["runs"]
    assert (row["state"], row["first_loss"], row["result_loss"], row["num_bytes"]) == ("finished", 2.5, 1.25, 1234)


def test_the_checkpoints_are_those_in_the_folder(folder: Path) -> None:
    """That of step 30 is in the journal and was removed; a crash took the line of step 36."""
    client = make_client(make_pages(folder, chosen="demo"))
    assert get(client, "/api/runs/demo/status")["status"]["checkpoints"] == []
    for step_ in (36, 30):
        kept = folder / "demo" / f"checkpoint-{step_}"
        kept.mkdir()
        (kept / MANIFEST).write_text("{}")
    assert get(client, "/api/runs/demo/status")["status"]["checkpoints"] == [
        {"step": 30, "folder": "checkpoint-30", "num_bytes": 4_000_000},
        {"step": 36, "folder": "checkpoint-36", "num_bytes": None},
    ]


def test_what_is_kept_is_tried_as_its_task_allows(tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    run = write_run(adapters, "demo", records(replace(STARTED, task="seq2seq"), FINISHED))
    kept = run.checkpoint(40)
    kept.mkdir()
    (kept / MANIFEST).write_text("{}")
    client = make_client(make_pages(adapters))
    asked = f"cd here && mlxft generate {run.path}"
    assert get(client, "/api/runs/demo/status")["status"]["talk"] == f"{asked} --prompt TEXT"
    assert get(client, "/api/runs/demo/filmstrip")["checkpoints"] == {
        "checkpoint-40": f"{asked}/checkpoint-40 --prompt TEXT"
    }


@pytest.mark.parametrize(("task", "said"), [("sft", "No answers yet."), ("classify", "This run was trained to score")])
def test_a_run_without_answers_says_why(tmp_path: Path, task: str, said: str) -> None:
    write_run(tmp_path, "demo", records(replace(STARTED, task=task), FINISHED))
    assert get(make_client(make_pages(tmp_path)), "/api/runs/demo/filmstrip")["none"].startswith(said)


def test_a_run_at_work_has_an_end_on_the_clock_and_no_way_to_go_on(folder: Path) -> None:
    run = write_run(folder, "now", records(STARTED, *(step(number) for number in range(1, 11))))
    lock = take_lock(run.file(LOCK))
    assert lock is not None
    status = get(make_client(make_pages(folder)), "/api/runs/now/status")["status"]
    assert (status["state"], status["go_on"]) == ("running", "")
    assert status["eta"] == 1_000_010.0 + 30.0


@pytest.mark.parametrize(
    ("end", "state"),
    [([], "interrupted"), ([RunFailed("no memory", "smaller", 3)], "failed"), ([HALVED], "interrupted")],
)
def test_a_run_that_is_gone_is_not_shown_at_work(folder: Path, end: list, state: str) -> None:
    write_run(folder, "demo", records(STARTED, step(1), *end))
    client = make_client(make_pages(folder))
    assert get(client, "/api/runs/demo/status")["status"]["state"] == state
    assert get(client, "/api/runs")["runs"][0]["state"] == state


def test_the_filmstrip_marks_what_changed(folder: Path) -> None:
    client = make_client(make_pages(folder))
    assert get(client, "/api/runs/demo/filmstrip")["frames"] == [
        {"step": 0, "loss": 2.5},
        {"step": 30, "loss": 1.25},
        {"step": 40, "loss": 1.5},
    ]
    first = get(client, "/api/runs/demo/filmstrip/0")
    assert first["answers"] == [{"prompt": "Hello?", "pieces": [["I do not know.", False]]}]
    second = get(client, "/api/runs/demo/filmstrip/1")["answers"][0]["pieces"]
    assert "".join(text for text, _ in second) == "Good day to you."
    assert any(changed for _, changed in second)
    assert get(client, "/api/runs/demo/filmstrip/2")["answers"][0]["pieces"] == [["Good day to you.", False]]
    assert any(
        changed for _, changed in get(client, "/api/runs/demo/filmstrip/2?against=first")["answers"][0]["pieces"]
    )
    for number in ("3", "-1", "x", "1" * 30):
        get(client, f"/api/runs/demo/filmstrip/{number}", 404)


def test_texts_of_a_run_are_sent_as_json_and_as_nothing_else(folder: Path) -> None:
    write_run(folder, "bad", records(STARTED, Notice("warning", HOSTILE), Sampled(0, HOSTILE, HOSTILE), step(1)))
    client = make_client(make_pages(folder))
    for path in ("status", "filmstrip/0"):
        answer = client.get(f"/api/runs/bad/{path}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert get(client, "/api/runs/bad/status")["status"]["notices"][0]["message"] == HOSTILE


@pytest.mark.parametrize(
    "name",
    [
        *("..", ".", "%2e%2e", "..%2f..", "..%2Fadapters%2Fdemo", "demo%2f..%2fdemo", "demo%00", "%2fetc", "nothing"),
        *("demo%5c..", "link", "file", "empty", "x" * 5000),
    ],
)
def test_nothing_but_runs_of_the_folder_can_be_named(folder: Path, name: str) -> None:
    outside = write_run(folder.parent / "elsewhere", "secret", whole_run())
    (folder / "link").symlink_to(outside.path)
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    client = make_client(make_pages(folder))
    assert get(client, "/api/names")["names"] == ["demo"]
    for what in ("status", "curves", "filmstrip", "rows", "settings", "microscope", "events"):
        answer = client.get(f"/api/runs/{name}/{what}")
        assert answer.status_code == 404, (what, answer.text)
        assert str(folder.parent) not in answer.text
    for what in ("stop", "save"):
        assert client.post(f"/api/runs/{name}/{what}", json={"confirm": True}).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/../pages.py",
        "/static/page.css",
        "/page.css/x",
        "/%2e%2e/pages.py",
        "/\\page.css",
        "/uplot-LICENSE.txt",
    ],
)
def test_the_files_of_the_page_are_reached_by_their_exact_address_only(folder: Path, path: str) -> None:
    assert make_client(make_pages(folder)).get(path).status_code == 404


def test_the_page_needs_no_token_and_everything_else_does(folder: Path) -> None:
    client = make_client(make_pages(folder), token="")
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert client.get("/main.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/uplot.js").status_code == 200
    for path in ("/api/names", "/api/runs", "/api/runs/demo/curves", "/api/runs/demo/events", "/api/x"):
        assert client.get(path).status_code == 401, path
    for path in ("/api/runs/demo/stop", "/api/runs/demo/save"):
        assert client.post(path, json={"confirm": True}).status_code == 401, path
    wrong = make_client(make_pages(folder), token="mlxft-" + "x" * 40)
    assert wrong.get("/api/names").status_code == 401


def test_the_page_holds_no_script_and_no_style_of_its_own_and_names_no_other_place(folder: Path) -> None:
    client = make_client(make_pages(folder))
    html = client.get("/").text
    assert "<script>" not in html
    assert "style=" not in html
    assert "<style" not in html
    assert " on" not in html.replace(" on ", " ")
    for path in ("/", "/main.js", "/live.js", "/api.js", "/charts.js", "/page.css", "/dom.js"):
        text = client.get(path).text
        assert "https://" not in text, path
        assert "innerHTML" not in text, path
        assert "eval(" not in text, path


@pytest.mark.parametrize("path", ["/", "/api/names", "/api/runs/demo/events"])
@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:1", f"0.0.0.0:{PORT}", ""])
def test_a_foreign_host_is_refused(folder: Path, path: str, host: str) -> None:
    assert get(make_client(make_pages(folder)), path, 403, host=host)["error"]["message"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1:1"])
def test_a_foreign_page_is_refused_even_with_the_token(folder: Path, origin: str) -> None:
    asked = Asked()
    client = make_client(make_pages(folder, asked))
    answer = client.post("/api/runs/demo/stop", json={"confirm": True}, headers={"origin": origin})
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)
    get(client, "/api/names", 403, origin=origin)
    assert asked.calls == []


def test_stop_and_save_are_asked_for_with_a_confirmation_in_json(folder: Path) -> None:
    asked = Asked()
    client = make_client(make_pages(folder, asked))
    for what in ("stop", "save"):
        path = f"/api/runs/demo/{what}"
        assert client.get(path).status_code == 405
        assert client.post(path).status_code == 415
        assert client.post(path, data={"confirm": "true"}).status_code == 415
        assert client.post(path, content='{"confirm": true}', headers={"content-type": "text/plain"}).status_code == 415
        for body in ({}, {"confirm": False}, {"confirm": "true"}, {"confirm": 1}, {"confirm": True, "x": 1}):
            assert client.post(path, json=body).status_code == 400, body
        assert client.post(path, json=[True]).status_code == 400
        assert asked.calls == []
        assert client.post(path, json={"confirm": True}).status_code == 202
        assert asked.calls == [(what, "demo")]
        asked.calls.clear()


def test_a_refusal_of_the_run_is_told_with_its_hint(folder: Path) -> None:
    write_run(folder, "refuses", whole_run())
    answer = make_client(make_pages(folder)).post("/api/runs/refuses/stop", json={"confirm": True})
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        409,
        "no training is at work; see how it ended",
    )


def test_a_large_body_is_refused(folder: Path) -> None:
    client = make_client(make_pages(folder))
    body = b'{"confirm": true, "x": "' + b"a" * 5_000_000 + b'"}'
    answer = client.post("/api/runs/demo/stop", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(folder: Path, method: str) -> None:
    client = make_client(make_pages(folder))
    for path in ("/", "/api/names", "/api/runs/demo/stop"):
        assert client.request(method, path).status_code == 405


def test_numbers_of_the_query_are_held_within_bounds(folder: Path) -> None:
    asked = Asked()
    client = make_client(make_pages(folder, asked))
    for query in ("points=x", "from=nan", "to=1e", "points=1_0x"):
        get(client, f"/api/runs/demo/curves?{query}", 400)
    assert get(client, "/api/runs/demo/curves?points=1e300&from=-inf&to=inf")["curves"]["loss"][0][-1] == 40.0
    assert len(get(client, "/api/runs/demo/curves?points=0")["curves"]["loss"][0]) <= 4
    assert get(client, "/api/runs/demo/rows?from=-5&count=9999&split=valid")["asked"] == ["valid", 0, 50]
    get(client, "/api/runs/demo/rows?split=..", 400)
    assert MAX_POINTS == 20_000


def test_two_runs_are_laid_over_each_other(folder: Path) -> None:
    write_run(folder, "other", records(STARTED, step(1, 3.0)))
    asked = Asked()
    asked.comparison = {"recipe": [["seed", "1", "2"]], "refusal": ""}
    found = get(make_client(make_pages(folder, asked)), "/api/compare?first=demo&second=other")
    assert [side["name"] for side in found["sides"]] == ["demo", "other"]
    assert found["sides"][1]["curves"]["loss"] == [[1.0], [3.0]]
    assert found["recipe"] == [["seed", "1", "2"]]
    get(make_client(make_pages(folder)), "/api/compare?first=demo&second=..", 404)
    get(make_client(make_pages(folder)), "/api/compare?first=demo", 404)


def test_a_table_of_runs_is_brought_up_to_date_when_a_journal_grows(folder: Path) -> None:
    pages = make_pages(folder)
    client = make_client(pages)
    run = write_run(folder, "more", records(STARTED, step(1)))
    assert {row["name"]: row["step"] for row in get(client, "/api/runs")["runs"]} == {"demo": 40, "more": 1}
    add_records(run, records(step(2), start=1_000_100.0))
    assert {row["name"]: row["step"] for row in get(client, "/api/runs")["runs"]} == {"demo": 40, "more": 2}


def test_a_folder_without_runs_is_a_page_too(tmp_path: Path) -> None:
    client = make_client(make_pages(tmp_path / "adapters"))
    assert get(client, "/api/names")["names"] == []
    assert get(client, "/api/runs") == {"runs": []}


def test_a_ticket_is_changed_for_the_token_once_and_soon(folder: Path) -> None:
    now = [100.0]
    tickets = Tickets(TOKEN, clock=lambda: now[0])
    hands = Asked().hands()
    client = make_client(Pages(Shelf(folder, hands), hands, tickets, chosen="", version="0"), token="")
    first, second = tickets.issue(), tickets.issue()
    ask = lambda ticket: client.post("/api/ticket", json={"ticket": ticket})  # noqa: E731
    assert ask("x").status_code == 403
    assert ask("\u00e9" * 43).status_code == 403
    assert ask("x" * 201).status_code == 400
    assert ask(first).json() == {"token": TOKEN}
    assert ask(first).status_code == 403
    now[0] += 61.0
    assert ask(second).status_code == 403
    assert (
        client.post("/api/ticket", json={"ticket": second}, headers={"origin": "http://evil.example"}).status_code
        == 403
    )


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "step", "time": 1, "step": "x", "epoch": 0}',
        to_json(step(3), 1.0).replace('"step": 3', '"step": "3"'),
        to_json(step(3), 1.0).replace('"loss": 1.0', '"loss": "a"'),
        to_json(step(3), 1.0).replace('"loss": 1.0', '"loss": 1e999'),
        to_json(step(3), 1.0).replace('"loss": 1.0', '"loss": NaN'),
        to_json(step(3), 1.0).replace('"time": 1.0', '"time": 1e999'),
        to_json(STARTED, 1.0).replace('"total_steps": 40', '"total_steps": null'),
        to_json(Sampled(0, "a", "b"), 1.0).replace('"b"', "{}"),
        "[" * 100_000,
        "\x00\xff",
    ],
)
def test_a_line_that_no_training_wrote_spoils_no_other_run(folder: Path, line: str) -> None:
    run = write_run(folder, "bad", records(STARTED, step(1), step(2)))
    with run.file(EVENTS).open("a") as file:
        file.write(line + "\n" + to_json(step(4), 2.0) + "\n")
    client = make_client(make_pages(folder))
    for what in ("status", "curves", "filmstrip", "filmstrip/0"):
        assert client.get(f"/api/runs/bad/{what}").status_code in (200, 404, 409), what
    rows = {row["name"]: row["state"] for row in get(client, "/api/runs")["runs"]}
    assert rows["demo"] == "finished"
    assert rows["bad"] in ("interrupted", "unreadable")
    assert client.get("/api/compare?first=bad&second=demo").status_code in (200, 409)


def test_runs_are_read_ahead_and_what_is_ready_is_what_would_be_read(folder: Path) -> None:
    pages = make_pages(folder)
    shelf = Shelf(folder, Asked().hands())
    write_run(folder, "other", records(STARTED, step(1), step(2)))
    shelf.read_ahead("demo")
    fresh = make_client(pages)
    for name in ("demo", "other"):
        run = shelf.find(name)
        assert run is not None
        assert shelf.curves(run) == shelf.curves(run) == fresh.get(f"/api/runs/{name}/curves").content
    run = write_run(folder, "other", records(STARTED, step(1, 5.0)))
    assert json.loads(shelf.curves(run))["curves"]["loss"] == [[1.0], [5.0]]
    shelf.read_ahead("nothing")
