"""Makes verification pairs of the images that a set of faces has."""

from __future__ import annotations

from pathlib import Path

from gkd.core.errors import DataError
from gkd.data.identities import find_identities, open_faces
from gkd.data.pair_choice import Key, choose_pairs
from gkd.data.pairs import PairSet


def make_pair_file(
    source: str | Path, out: str | Path, *, num_pairs: int = 2000, folds: int = 10, seed: int = 0
) -> PairSet:
    """Write random pairs of `source`'s images, half of one person and half of two, into a .bin file.

    Folds are contiguous and balanced, and share nobody where there are people enough; see `choose_pairs`. The pairs are
    a function of the people's names (labels where there are none), their numbers of images and the numbers given here.

    Args:
        source: a .rec file or a folder with a sub-folder for each identity.
        out: the file to write; a name that ends in .bin.

    Raises:
        ConfigError: pairs that do not split into halves of folds, or a negative seed.
        DataError: a source that is missing or damaged, too few images for the pairs, or another name than .bin.
    """
    out = Path(out)
    if out.suffix != ".bin":
        raise DataError(f"{out}: the name must end in .bin")
    identities = find_identities([open_faces(source)])
    try:
        keys, is_same = choose_pairs([len(person) for person in identities], num_pairs, folds, seed)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    # Read by ascending place; a picture in several pairs is kept and written once.
    images: dict[Key, bytes] = {(person, image): identities[person][image] for person, image in sorted(set(keys))}
    pairs = PairSet([images[key] for key in keys], is_same, out.stem)
    pairs.save(out)
    return pairs
