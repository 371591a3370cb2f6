"""Pre- and post-processing pipelines of pi_0.5, with a tokenizer that may be a local folder."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    ProcessorStepRegistry,
    RelativeActionsProcessorStep,
    TokenizerProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)

from policies._openpi import openpi_stats
from policies._pretrained import tokenizer_error
from policies._processors import Pipelines, Stats
from policies.configuration_vla_pi05 import MINILM, VLAPi05Config
from policies.text import MINILM_TOKENIZER

_QUANTILES = ("q01", "q99")


@ProcessorStepRegistry.register("packaged_tokenizer_processor")
@dataclass
class PackagedTokenizerStep(TokenizerProcessorStep):
    """lerobot's step with the tokenizer of an installed package, found where it is installed.

    A checkpoint names the tokenizer, not the folder it had on the machine of the training.
    """

    def __post_init__(self) -> None:
        """Load the tokenizer.

        Raises:
            ValueError: another name. PinnedFileError: the package is not as it should be.
        """
        if self.tokenizer_name != MINILM:
            raise ValueError(f"tokenizer_name is '{self.tokenizer_name}', expected '{MINILM}'")
        from transformers import AutoTokenizer

        folder = MINILM_TOKENIZER.locate().parent
        self.input_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)


def make_vla_pi05_pre_post_processors(
    config: VLAPi05Config, dataset_stats: Stats | None = None
) -> Pipelines:
    """Build the pipelines of pi_0.5: quantiles, the state as words, tokens.

    Args:
        config: features declared.
        dataset_stats: feature name -> statistic name -> array, with exact quantiles. None with
            openpi_path: those of the openpi checkpoint.

    Raises:
        PretrainedFileError: no tokenizer, or no statistics in the openpi checkpoint.
        ValueError: statistics without quantiles, by which pi_0.5 normalises.
    """
    if dataset_stats is None and config.openpi_path:
        dataset_stats = openpi_stats(config.openpi_path)
    _check_quantiles(config, dataset_stats or {})
    relative = RelativeActionsProcessorStep(
        enabled=config.use_relative_actions,
        exclude_joints=config.relative_exclude_joints,
        action_names=config.action_feature_names,
    )
    steps = make_default_policy_processor_steps(config, dataset_stats)
    try:
        step = PackagedTokenizerStep if config.tokenizer == MINILM else TokenizerProcessorStep
        tokens = step(
            tokenizer_name=config.tokenizer,
            max_length=config.tokenizer_max_length,
            padding_side="right",
            padding="max_length",
        )
    except (OSError, ValueError) as error:
        raise tokenizer_error(config.tokenizer, error) from error
    before = [steps.rename_observations, steps.add_batch_dim, relative, steps.normalize]
    words = Pi05PrepareStateTokenizerProcessorStep(max_state_dim=config.max_state_dim)
    absolute = AbsoluteActionsProcessorStep(
        enabled=config.use_relative_actions, relative_step=relative
    )
    return make_policy_processor_pipelines(
        input_steps=[*before, words, tokens, steps.to_device],
        output_steps=[steps.unnormalize, absolute, steps.to_cpu],
    )


def _check_quantiles(config: VLAPi05Config, stats: Stats) -> None:
    """lerobot would leave such a feature as it is and say nothing."""
    for key in ("observation.state", "action"):
        missing = [name for name in _QUANTILES if key in stats and name not in stats[key]]
        if missing:
            raise ValueError(
                f"the statistics of '{key}' lack {missing}; they have {sorted(stats[key])}. "
                "`vla-opt data` computes exact ones"
            )
