"""Training data of a generator: its card, which describes them, and the examples."""

from pathlib import Path
from statistics import median

from vidvq.data import TokenDataset
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import BUNDLED, checkpoint_name, resolve_checkpoint
from vidvq.formats.generator import GeneratorCard
from vidvq.generate.conditions import Actions, read_actions, read_column
from vidvq.generate.config import BLANKED_TASKS, GenerateTrainConfig
from vidvq.generate.text import TextEncoder
from vidvq.generate.training.examples import Columns, ExampleDataset
from vidvq.model import Tokenizer
from vidvq.pretrained import load_tokenizer

# Number of samples whose median frame rate the card records.
_FPS_SAMPLES = 256


def open_training_data(config: GenerateTrainConfig, tokens: TokenDataset) -> tuple[GeneratorCard, ExampleDataset]:
    """Build the card of the generator from data and settings, and open the training examples.

    Raises:
        UsageError: a column, the text encoder, a clip or the tokenizer of the tokens is missing, or all samples are too
            short for ``tasks.predict``.
    """
    clips = config.pixels.clips if config.pixels else ()
    wanted = {location.key for location in tokens.index.locations}
    labels: dict[str, str] = {}
    actions = Actions({}, (), ())
    if config.conditions.label:
        labels = {key: str(value) for key, value in read_column(clips, config.conditions.label, wanted).items()}
    if config.conditions.actions:
        actions = read_actions(clips, config.conditions.actions, wanted)
    texts: dict[str, str] = {}
    encoder = None
    if config.conditions.text and config.conditions.text_encoder:
        texts = {key: str(value) for key, value in read_column(clips, config.conditions.text, wanted).items()}
        encoder = TextEncoder(config.conditions.text_encoder)
    names = tuple(sorted(set(labels.values())))
    rates = [location.read_info().fps for location in tokens.index.locations[:_FPS_SAMPLES]]
    counts = {tuple(map(int, shape)): 0 for shape in tokens.shapes}
    for grid in tokens.index.grid:
        counts[min(int(grid[0]), config.data.latents), int(grid[1]), int(grid[2])] += 1
    if config.tasks.predict and max(shape[0] for shape in counts) < 2:
        raise UsageError("tasks.predict needs samples of 2 or more latent frames; data.tokens has only images")
    card = GeneratorCard(
        tokenizer=tokens.card,
        objective=config.objective,
        tasks=tuple(config.tasks.weights),  # type: ignore[arg-type]
        shapes=tuple(sorted(counts, key=lambda shape: (-counts[shape], shape))),  # type: ignore[arg-type]
        fps=float(median(rates)),
        model=vars(config.model),
        label=config.conditions.label or "",
        labels=names,
        actions=config.conditions.actions or "",
        action_mean=actions.mean,
        action_scale=actions.scale,
        action_choices=actions.choices,
        text=config.conditions.text or "",
        text_encoder=config.conditions.text_encoder or "",
        text_width=encoder.width if encoder else 0,
        text_probe=encoder.probe if encoder else (),
    )
    known = {name: 1 + at for at, name in enumerate(names)}
    columns = Columns({key: known[name] for key, name in labels.items()}, actions.by_key, texts, encoder)
    return card, ExampleDataset(config, card, tokens, columns, _load_tokenizer(config, card))


def _load_tokenizer(config: GenerateTrainConfig, card: GeneratorCard) -> Tokenizer | None:
    """Load the tokenizer that encodes blanked clips; None if no task needs it."""
    if config.pixels is None or not BLANKED_TASKS & config.tasks.weights.keys():
        return None
    path = resolve_checkpoint(config.pixels.tokenizer) if config.pixels.tokenizer else BUNDLED
    return load_matching_tokenizer(path, card, "pixels.tokenizer")


def load_matching_tokenizer(path: Path, card: GeneratorCard, setting: str) -> Tokenizer:
    """Load a tokenizer, after checking that it made the tokens.

    Raises:
        UsageError: another tokenizer made the tokens.
    """
    tokenizer, found = load_tokenizer(path)
    if found.token_fingerprint != card.tokenizer.token_fingerprint:
        made_by, given = card.tokenizer.token_fingerprint[:12], found.token_fingerprint[:12]
        raise UsageError(
            f"data.tokens was made by tokenizer {made_by}, but {checkpoint_name(path)} is tokenizer {given}; "
            f"set {setting} to the one that made the tokens"
        )
    return tokenizer
