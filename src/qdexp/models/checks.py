"""Whether the files of a model are what its config says: looked at before any work, and no part of any."""

from qdexp import models
from qdexp.config import RANDOM, Model
from qdexp.models import declared, loading


def weights(model: Model) -> None:
    """Raises UserError where files are missing or truncated, or differ from a ``.sha256`` file beside them or the schedule."""
    found = models.opened(model)
    found.check_digests()
    loading.check_schedule(found, model.schedule)
    if model.first_stage is not None:
        models.first_stage_opened(model, model.first_stage).check_digests()


def declarations(model: Model) -> None:
    """Raises UserError where the folder of the weights says something else of the model than the config."""
    declared.check(model, lambda target: models.skeleton_of(target, "model.network"))


def fit(model: Model) -> None:
    """Raises UserError where the network and its weights differ in a name or a shape."""
    if not models.is_random(model):
        loading.check_fit(models.skeleton(model), models.opened(model), "model.network")


def finite(model: Model) -> None:
    """Raises UserError where the network's weights are no numbers. Reads them all."""
    if not models.is_random(model):
        loading.check_finite(models.skeleton(model), models.opened(model))


def first_stage(model: Model) -> None:
    """Raises UserError where the first stage and its weights differ likewise, or in its scale."""
    stage = model.first_stage
    if stage is not None and stage.weights != RANDOM:
        found, option = models.first_stage_opened(model, stage), "model.first_stage.network"
        loading.check_fit(models.skeleton_of(stage.network, option), found, option)
        loading.measured_scale(found, stage.scale)
