"""Weights & Biases and MLflow as they are called: with stand-ins that have the signatures of the real clients."""

from __future__ import annotations

import importlib.machinery
import logging
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from gkd.cli.train import main
from gkd.train.mlflow_sink import MlflowSink
from gkd.train.sink_ids import keep_id, kept_id
from gkd.train.wandb_sink import WandbSink
from tests.train.tiny_run import config, write_data

CONFIG = {"optim": {"lr": 0.1}, "run": {"folder": "here"}, "log": {"images": False}, "notes": "x" * 900}


def module(monkeypatch, name, **members):
    """A stand-in for the package `name`."""
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for member, value in members.items():
        setattr(made, member, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class WandbRun:
    def __init__(self, arguments):
        self.arguments = arguments
        self.records = []
        self.defined = []
        self.exit_code = None

    def define_metric(self, name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None):
        self.defined.append((name, step_metric))

    def log(self, data, step=None, commit=None):
        assert step is None, "a step of its own must grow, and two records of one step are usual"
        self.records.append(data)

    def finish(self, exit_code=None):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    runs = []

    def init(
        entity=None,
        project=None,
        dir=None,
        id=None,
        name=None,
        notes=None,
        tags=None,
        config=None,
        mode=None,
        resume=None,
        save_code=None,
        settings=None,
    ):
        runs.append(WandbRun({key: value for key, value in locals().items() if key != "runs"}))
        return runs[-1]

    class Settings(SimpleNamespace):
        model_fields = dict.fromkeys(("console", "silent", "disable_git", "init_timeout", "finish_timeout"))

        def __init__(self, **given):
            assert set(given) <= set(self.model_fields)
            super().__init__(**given)

    return module(monkeypatch, "wandb", init=init, Settings=Settings, runs=runs)


def wandb_sink(folder, **changes):
    return WandbSink(folder, CONFIG, **{"project": "faces", "entity": None, "name": None, "mode": "offline", **changes})


def test_wandb_gets_figures_config_and_end(tmp_path, wandb):
    sink = wandb_sink(tmp_path)
    sink.scalars(10, {"loss/total": 2.0}, 99.5)
    sink.scalars(10, {"eval/a/accuracy": 0.5}, 99.75)
    sink.close(is_failed=True)
    (run,) = wandb.runs
    assert run.records == [
        {"loss/total": 2.0, "train_step": 10, "time": 99.5},
        {"eval/a/accuracy": 0.5, "train_step": 10, "time": 99.75},
    ]
    assert run.defined == [("*", "train_step")]
    assert run.exit_code == 1
    wanted = {"project": "faces", "mode": "offline", "resume": "allow", "dir": str(tmp_path), "name": tmp_path.name}
    assert {key: run.arguments[key] for key in wanted} == wanted
    assert run.arguments["config"] == CONFIG
    assert run.arguments["save_code"] is False
    settings = run.arguments["settings"]
    assert (settings.console, settings.disable_git) == ("off", True)
    assert settings.init_timeout + settings.finish_timeout <= 60


def test_a_resumed_run_continues_at_wandb_under_its_id(tmp_path, wandb):
    for _ in range(2):
        wandb_sink(tmp_path).close(is_failed=False)
    wandb_sink(tmp_path / "other").close(is_failed=False)
    ids = [run.arguments["id"] for run in wandb.runs]
    assert ids[0] == ids[1] != ids[2]
    assert (tmp_path / "wandb_id.txt").read_text().strip() == ids[0]
    assert wandb.runs[0].exit_code == 0


def test_an_old_wandb_is_told_of_and_used_all_the_same(tmp_path, wandb, caplog):
    del wandb.Settings.model_fields["finish_timeout"]
    wandb_sink(tmp_path).scalars(1, {}, 0.0)
    assert "may hold up the end of the run where its server is down; update it" in caplog.text


class Store:
    """What an MLflow server keeps."""

    def __init__(self):
        self.experiments = {}
        self.runs = {}


@pytest.fixture
def mlflow(monkeypatch):
    stores = {}

    class Client:
        def __init__(self, tracking_uri=None, registry_uri=None):
            self.store = stores.setdefault(tracking_uri, Store())

        def get_experiment_by_name(self, name):
            found = self.store.experiments.get(name)
            return None if found is None else SimpleNamespace(experiment_id=found)

        def create_experiment(self, name, artifact_location=None, tags=None):
            self.store.experiments[name] = str(len(self.store.experiments))
            return self.store.experiments[name]

        def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
            run_id = f"{len(self.store.runs):032x}"
            self.store.runs[run_id] = SimpleNamespace(
                experiment=experiment_id, name=run_name, status="RUNNING", metrics=[], params={}
            )
            return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

        def update_run(self, run_id, status=None, name=None):
            self.store.runs[run_id].status = status

        def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
            assert synchronous
            assert len(params) <= 100
            assert all(len(param.value) <= 500 for param in params)
            self.store.runs[run_id].metrics += [(m.key, m.value, m.timestamp, m.step) for m in metrics]
            self.store.runs[run_id].params |= {param.key: param.value for param in params}

        def set_terminated(self, run_id, status=None, end_time=None):
            self.store.runs[run_id].status = status

    class Metric(SimpleNamespace):
        def __init__(self, key, value, timestamp, step):
            super().__init__(key=key, value=value, timestamp=timestamp, step=step)

    class Param(SimpleNamespace):
        def __init__(self, key, value):
            super().__init__(key=key, value=value)

    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")  # so that what the sink sets is taken back
        monkeypatch.delenv(name)
    module(monkeypatch, "mlflow.tracking", MlflowClient=Client)
    module(monkeypatch, "mlflow.entities", Metric=Metric, Param=Param)
    yield module(monkeypatch, "mlflow", stores=stores)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.NOTSET)


def mlflow_sink(folder, uri="sqlite:///x.db", settings=CONFIG):
    return MlflowSink(folder, settings, experiment="faces", name=None, tracking_uri=uri)


def test_mlflow_gets_figures_parameters_and_end(tmp_path, mlflow):
    sink = mlflow_sink(tmp_path)
    sink.scalars(10, {"loss/total": 2.0, "eval/a/tar@far=0.001": 0.5}, 99.5)
    sink.close(is_failed=False)
    (run,) = mlflow.stores["sqlite:///x.db"].runs.values()
    assert run.metrics == [("loss/total", 2.0, 99500, 10), ("eval/a/tar_far_0.001", 0.5, 99500, 10)]
    assert run.params == {"optim.lr": "0.1", "notes": "x" * 500}
    assert (run.name, run.status) == (tmp_path.name, "FINISHED")
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) < 7


def test_many_parameters_are_sent_in_parts(tmp_path, mlflow):
    mlflow_sink(tmp_path, settings={"many": {str(index): index for index in range(250)}})
    (run,) = mlflow.stores["sqlite:///x.db"].runs.values()
    assert len(run.params) == 250


def test_a_resumed_run_continues_at_mlflow_under_its_id(tmp_path, mlflow):
    mlflow_sink(tmp_path).close(is_failed=True)
    runs = mlflow.stores["sqlite:///x.db"].runs
    assert [run.status for run in runs.values()] == ["FAILED"]
    sink = mlflow_sink(tmp_path)
    assert [run.status for run in runs.values()] == ["RUNNING"]
    sink.close(is_failed=False)
    mlflow_sink(tmp_path / "other")
    assert [(run.experiment, run.status) for run in runs.values()] == [("0", "FINISHED"), ("0", "RUNNING")]


def test_a_damaged_id_is_not_sent_anywhere(tmp_path):
    path = tmp_path / "id.txt"
    assert kept_id(path) is None
    keep_id(path, "abc-1_2")
    assert kept_id(path) == "abc-1_2"
    for text in ("", "../../x", "a b", "x" * 200, "\x00"):
        path.write_text(text)
        assert kept_id(path) is None


def test_a_run_feeds_both_and_ends_well_where_one_is_down(tmp_path, wandb, mlflow, monkeypatch, capsys):
    def refuse(**_):
        raise ConnectionError("connection refused")

    monkeypatch.setattr(wandb, "init", refuse)
    write_data(tmp_path)
    log = {"wandb": {"mode": "offline"}, "mlflow": {"tracking_uri": "http://x"}, "histograms_every": None}
    path = config(tmp_path, log=log, train={"epochs": 1, "batch_size": 8, "log_every": 2})
    assert main([str(path)]) == 0
    (run,) = mlflow.stores["http://x"].runs.values()
    assert [step for key, _, _, step in run.metrics if key == "loss/total"] == [2, 4, 6]
    assert [step for key, _, _, step in run.metrics if key == "eval/pairs/accuracy"] == [6]
    assert run.status == "FINISHED"
    told = capsys.readouterr().err
    assert told.count("Weights & Biases: takes no figures (ConnectionError: connection refused)") == 1
    assert "4 records are missing there" in told


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_run_whose_sink_is_not_installed_is_refused_before_it_starts(tmp_path, package, monkeypatch, capsys):
    monkeypatch.setattr("gkd.train.sinks.find_spec", lambda name: None)
    write_data(tmp_path, images_per_identity=2)
    for arguments in (["--dry-run"], []):
        assert main([str(config(tmp_path, log={package: {}})), *arguments]) == 2
        message = f"error: log.{package}: needs the package {package}, which is missing; pip install {package}"
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
