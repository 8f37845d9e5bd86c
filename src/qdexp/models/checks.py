"""Whether the files of a model are what its config says: looked at before any work, and no part of any."""

from qdexp import models
from qdexp.config import RANDOM, Model
from qdexp.models import declared, loading


def weights(model: Model) -> None:
    """Raises UserError where files are missing or truncated, or differ from a ``.sha256`` file beside them or the schedule."""
    opened = loading.opened(models.files(model), f"model.weights={model.weights}")
    opened.check_digests()
    loading.check_schedule(opened, model.schedule)
    if model.first_stage is not None:
        loading.opened(
            models.first_stage_files(model), f"model.first_stage.weights={model.first_stage.weights}"
        ).check_digests()


def declarations(model: Model) -> None:
    """Raises UserError where the folder of the weights says something else of the model than the config."""
    declared.check(model, lambda target: models.skeleton_of(target, "model.network"))


def fit(model: Model) -> None:
    """Raises UserError where architecture and weights differ in a name or a shape."""
    if not models.is_random(model):
        opened = loading.opened(models.files(model), f"model.weights={model.weights}")
        loading.check_fit(models.skeleton(model), opened, "model.network")
    stage = model.first_stage
    if stage is not None and stage.weights != RANDOM:
        opened = loading.opened(models.first_stage_files(model), f"model.first_stage.weights={stage.weights}")
        loading.check_fit(models.skeleton_of(stage.network, "model.first_stage.network"), opened, "model.first_stage.network")
        loading.measured_scale(opened, stage.scale)
