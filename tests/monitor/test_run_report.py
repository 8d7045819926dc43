"""What ``runs show`` says about the machine: one line of what it told, nothing where it told nothing."""

from mlx_finetune.events import Record, Resources, RunStarted
from mlx_finetune.monitor.run_report import RunFacts, report_json, report_lines
from mlx_finetune.monitor.summary import summarise


def shown(*samples: Resources) -> list[str]:
    return [line for line in report_lines(facts(*samples), {}) if not line.startswith("run: ")]


def facts(*samples: Resources) -> RunFacts:
    records = [Record(float(index), index, sample) for index, sample in enumerate(samples)]
    return RunFacts("run", "/runs/run", 0, False, (), summarise(records))


def test_energy_and_heat_are_one_line() -> None:
    first = Resources(1, watts=20.0, energy_joules=3600.0, temperature_celsius=61.5, throttled="")
    second = Resources(2, watts=30.0, energy_joules=7200.0, temperature_celsius=90.2, throttled="the processor's speed")
    assert shown(first, second) == [
        "2.00 Wh used, 25.0 W on average, 90 C at the hottest, slowed down for the heat in 50% of the time"
    ]
    assert shown(first, Resources(2)) == ["1.00 Wh used, 20.0 W on average, 62 C at the hottest"]


def test_a_run_with_a_new_head_has_trained_no_more_than_all() -> None:
    started = RunStarted("run", "m", "reward", 0, 2, 2, 4, 2, 177_300, 172_300, "CPU", "float32")
    found = RunFacts("run", "/runs/run", 0, False, (), summarise([Record(0.0, 0, started)]))
    assert any("177.3k parameters trained (100.0%)" in line for line in report_lines(found, {}))


def test_a_machine_that_tells_none_of_it_takes_no_line() -> None:
    assert shown() == []
    assert shown(Resources(1, cpu_percent=50.0, throttled="")) == []


def test_the_json_has_means_and_largest_values() -> None:
    found = report_json(facts(Resources(1, cpu_percent=50.0), Resources(2, cpu_percent=70.0)), {})["resources"]
    assert isinstance(found, dict)
    assert (found["samples"], found["mean"], found["max"]) == (2, {"cpu_percent": 60.0}, {"cpu_percent": 70.0})
    assert report_json(facts(), {})["resources"] is None


def test_settings_of_another_task_are_not_shown() -> None:
    values = {
        "task": "sft",
        "verifier": {"lm_loss_weight": 1.0},
        "grpo": {"group_size": 8},
        "data": {"path": "d", "text_template": "{text}", "max_target_length": 256},
    }
    text = "\n".join(report_lines(facts(), values))
    assert 'path = "d"' in text
    for name in ("verifier", "grpo", "text_template", "max_target_length"):
        assert name not in text
    assert "[grpo] group_size = 8" in "\n".join(report_lines(facts(), values | {"task": "grpo"}))
    assert "max_target_length = 256" in "\n".join(report_lines(facts(), values | {"task": "seq2seq"}))
