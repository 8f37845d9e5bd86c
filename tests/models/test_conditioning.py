from dataclasses import replace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.models.conditioning import Classes
from qdexp.paths import conf_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> Config:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return Config.of(compose("config", ["model=dit_fashion"]))


@pytest.mark.parametrize(("classes", "wanted"), [(None, [0, 1, 2]), ([2, 1], [2, 1])])
def test_classes_are_asked_for_in_turn(config: Config, classes: list[int] | None, wanted: list[int]) -> None:
    config = replace(config, protocol=replace(config.protocol, classes=classes))
    conditioning = Classes(3, empty=3)
    for samples in (1, 10):
        assert list(conditioning.wanted(config, "evaluation", samples)) == wanted
    assert torch.equal(conditioning.encode(wanted, config.model, CPU)["class_labels"], torch.tensor(wanted))  # type: ignore[arg-type]
    assert conditioning.nothing(config.model, CPU) == {"class_labels": torch.tensor([3])}
    assert Classes(3).nothing(config.model, CPU) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [0, 3]}, r"protocol\.classes=\[0, 3\]: choose from 0 to 2"),
        ({"guidance": 2.0}, r"protocol\.guidance=2\.0: the model has no label for no class"),
        ({"prompts": "x.txt"}, r"protocol\.prompts=x\.txt: dit_fashion is conditioned on classes; leave it out"),
    ],
)
def test_what_a_model_cannot_be_asked_for(config: Config, change: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"classes": None, "guidance": 1.0, "prompts": None, **change}
    with pytest.raises(UserError, match=f"^{message}"):
        Classes(3).check(replace(config, protocol=replace(config.protocol, **asked)))


def test_a_label_that_the_network_does_not_take(config: Config) -> None:
    told = r"the network takes no such argument, did you mean class_labels\?; it takes hidden_states, "
    with pytest.raises(UserError, match=rf"^model\.condition\.name=class_label: {told}"):
        Classes(10, name="class_label").check(config)
