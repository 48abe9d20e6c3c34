"""MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgan_mpi.data import Images, to_8_bits
from fedgan_mpi.run.image_grids import grid
from fedgan_mpi.trackers import Tracker, numbers_of

_DIRECTORY = "mlflow"
_TAG = "fedgan_mpi.run"
"""The tag by which a resumed run finds its earlier part."""
_LONGEST = 500  # characters of a parameter
_PER_REQUEST = 100  # parameters


class MLflow(Tracker):
    """MLflow, in the run directory unless MLFLOW_TRACKING_URI names a server.

    MLFLOW_EXPERIMENT_NAME names the experiment. Default: fedgan_mpi.
    """

    def __init__(self) -> None:
        self._client: Any = None

    def on_run_begin(self, run: Path, done: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.resolve() / _DIRECTORY).as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedgan_mpi")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tag = str(run.resolve())
        earlier = self._client.search_runs([number], f"tags.`{_TAG}` = '{tag}'")
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        started = self._client.create_run(number, run_name=run.name, tags={_TAG: tag})
        self._id = started.info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in _flat(self.config).items()]
        for start in range(0, len(params), _PER_REQUEST):
            self._client.log_batch(self._id, params=params[start : start + _PER_REQUEST])

    def on_round_end(self, round: int, metrics: Mapping[str, Any]) -> None:
        self._log(round, numbers_of(metrics))

    def on_score(self, scores: Sequence[Mapping[str, Any]]) -> None:
        for score in scores:
            self._log(score["round"], {f"score/{score['metric']}": score["value"]})

    def on_samples(self, round: int, images: Images) -> None:
        pixels = to_8_bits(grid(images))
        self._client.log_image(self._id, pixels, f"samples/round_{round:06d}.png")

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._id)

    def _log(self, round: int, numbers: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(name, value, now, round) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=entries)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `section.key` -> value."""
    return {
        f"{section}.{key}": value
        for section, values in config.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
    }
