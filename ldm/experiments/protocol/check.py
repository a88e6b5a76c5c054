"""What can be wrong with a protocol's trainings, found before the first of them begins."""

from __future__ import annotations

from ldm.experiments.protocol.cells import learning_options
from ldm.experiments.protocol.spec import ProtocolSpec
from ldm.util import UserError


def check_training(spec: ProtocolSpec) -> None:
    """Check the configuration of each variant that learns, as main.py would for its first cell.

    Raises:
        UserError: naming the variant.
    """
    from ldm.training.config import load

    concept = spec.concepts[0]
    for variant in spec.variants:
        if variant.source != "learned":
            continue
        options = learning_options(spec, concept, variant, concept.folder)
        try:
            load(options)
        except UserError as error:
            raise UserError(f"variant {variant.name}: {error}") from error
