"""Colours and choices that an identity's numbers stand for."""

from __future__ import annotations

from gkd.data.synthetic.canvas import Colour, mix, shade
from gkd.data.synthetic.identity import Identity

_SKIN: tuple[Colour, ...] = (
    (241, 208, 188),
    (230, 188, 160),
    (212, 163, 130),
    (182, 130, 96),
    (139, 93, 66),
    (90, 58, 43),
)
_HAIR: tuple[Colour, ...] = (
    (24, 20, 20),
    (38, 27, 22),
    (66, 43, 29),
    (99, 66, 40),
    (142, 101, 58),
    (199, 160, 100),
    (134, 62, 32),
    (150, 146, 142),
)
_IRIS: tuple[Colour, ...] = ((52, 32, 20), (84, 52, 28), (112, 86, 44), (92, 110, 74), (84, 116, 150), (118, 132, 140))
_FRAMES: tuple[Colour, ...] = ((22, 22, 24), (70, 44, 26), (120, 120, 126), (150, 112, 60), (96, 26, 32))
_SHORT, _LONG = (44.0, 58.0), (108.0, 150.0)


def skin(identity: Identity) -> Colour:
    """The skin's base colour, before light."""
    place = identity.melanin * (len(_SKIN) - 1)
    index = min(int(place), len(_SKIN) - 2)
    red, green, blue = mix(_SKIN[index], _SKIN[index + 1], place - index)
    warm = identity.undertone
    return (red * (1 + 0.025 * warm), green, blue * (1 - 0.07 * warm))


def hair(identity: Identity) -> Colour:
    """The hair's colour: dark hair is likelier with dark skin, grey with age."""
    lot = identity.hair_lot
    if identity.age > 0.72 and lot > 0.45:
        return shade(_HAIR[-1], identity.hair_shade)
    reach = 2.4 if identity.melanin > 0.55 else len(_HAIR) - 1.01
    return shade(_HAIR[int(lot * reach)], identity.hair_shade)


def iris(identity: Identity) -> Colour:
    """The colour of the iris."""
    reach = 2.2 if identity.melanin > 0.55 else len(_IRIS)
    return shade(_IRIS[int(identity.iris_lot * reach)], identity.iris_shade)


def lips(identity: Identity) -> Colour:
    """The colour of the lips: skin with more red."""
    return mix(shade(skin(identity), 0.86), (158, 62, 66), 0.2 + 0.55 * identity.lip_colour)


def crease(identity: Identity) -> Colour:
    """The colour of a fold of the skin."""
    red, green, blue = skin(identity)
    return (red * 0.52, green * 0.40, blue * 0.37)


def frames(identity: Identity) -> Colour:
    """The colour of the frame of the glasses."""
    return _FRAMES[int(identity.glasses_lot_colour * len(_FRAMES))]


def hair_length(identity: Identity) -> float:
    """The height at which the hair ends at the sides, template pixels."""
    lot = 2 * identity.hair_length_lot
    low, high = _SHORT if lot < 1 else _LONG
    return low + (high - low) * (lot % 1)


def is_bald(identity: Identity) -> bool:
    """Whether the top of the head is bare."""
    return identity.bald_lot < 0.15 and hair_length(identity) < 64.0


def has_bangs(identity: Identity) -> bool:
    """Whether hair hangs over the forehead."""
    return identity.bangs_lot < 0.24 and not is_bald(identity)


def wears_glasses(identity: Identity) -> bool:
    """Whether the person owns glasses; they are not worn in every picture."""
    return identity.glasses_lot < 0.22


def beard(identity: Identity) -> str:
    """The kind of facial hair: "none", "stubble", "moustache", "goatee" or "full"."""
    lot = identity.beard_lot
    if lot < 0.58 or hair_length(identity) > 95.0:
        return "none"
    return ("stubble", "moustache", "goatee", "full")[int((lot - 0.58) / 0.42 * 3.999)]
