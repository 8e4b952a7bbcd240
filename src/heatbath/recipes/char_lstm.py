"""Shakespeare character by character with an LSTM.

One layer of 128 cells on windows of 64 characters, each from a zero state: 0.1 million parameters. Terms and Fisher matrix as
in `char_gpt`; the positions that share the LSTM's weights are its time steps.
"""

from __future__ import annotations

from heatbath.curvature import Categorical, Reduction, SampledFisher
from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data.shakespeare import ALPHABET, shakespeare
from heatbath.experiments.experiment import LossTerms
from heatbath.experiments.models.language import CharacterLSTM, bits_per_character, next_character_loss, perplexity

LENGTH = 64
LIKELIHOOD = Categorical(class_dim=-1)


def char_lstm() -> Experiment:
    """One LSTM layer of 128 cells on windows of 64 characters."""
    return Experiment(
        name="char-lstm",
        summary="tiny-shakespeare by characters, LSTM of 128 cells on windows of 64",
        source=shakespeare(LENGTH),
        model=lambda: CharacterLSTM(len(ALPHABET), embedded=64, width=128),
        loss=next_character_loss,
        metrics={
            "test loss": next_character_loss,
            "test bits per character": bits_per_character,
            "test perplexity": perplexity,
        },
        target=Target("test loss", 2.0, higher=False),
        # Held-out loss after 150 steps, one seed: three or more rates a factor of about 3 apart each (SOAP is a guess), six
        # settings of rate, damping and clip for K-FAC. Good to start from; `heatbath tune` for comparisons.
        hyper={
            "sgd": Hyper(lr=3.0),
            "adam": Hyper(lr=1e-2),
            "adamw": Hyper(lr=1e-2, weight_decay=1e-2),
            "nadamw": Hyper(lr=3e-2, weight_decay=1e-2),
            "muon": Hyper(lr=3e-2, momentum=0.95, weight_decay=1e-2),
            "soap": Hyper(lr=3e-3, momentum=0.95, weight_decay=1e-2, square_decay=0.95),
            "kfac": Hyper(lr=0.3, damping=1e-3, kl_clip=0.1),
        },
        batch_size=16,
        steps=1000,
        eval_every=100,
        terms=LossTerms(LIKELIHOOD, Reduction.ROWS, SampledFisher(LIKELIHOOD)),
    )
