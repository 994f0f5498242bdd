"""The clinical scale that assigns a grade, 0 to 4, to the lesions of an eye.

Source: the International Clinical Diabetic Retinopathy disease severity scale (ICDR),
Wilkinson et al., Ophthalmology 110(9), 2003, table 2, with its "4-2-1 rule" for grade 3.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

HAEMORRHAGES_PER_QUADRANT = 20
"""Grade 3 has more than this many in each of the four quadrants (the "4" of 4-2-1)."""
BEADING_QUADRANTS = 2
"""Grade 3 has venous beading in at least this many quadrants (the "2")."""


@dataclass(frozen=True)
class Lesion:
    """One lesion of the retina.

    ``kind`` is MA, HE, EX or SE as in :data:`drgrade.schema.LESIONS`, or a sign without a mask: PRH
    (preretinal haemorrhage), NV (new vessels), IRMA (intraretinal microvascular abnormality), VB (venous
    beading). ``x`` (rightwards) and ``y`` (downwards) are measured from the fovea and ``size`` is a mean
    radius, all in radii of the field of view; ``angle`` in radians; ``shape`` is dot, blot, flame or empty;
    ``depth`` 0-1 is its contrast; ``seed`` determines its outline.
    """

    kind: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    shape: str = ""
    depth: float = 1.0
    seed: int = 0

    @property
    def quadrant(self) -> tuple[bool, bool]:
        """Quadrant as two flags: (right of the fovea, below the fovea)."""
        return self.x >= 0, self.y >= 0


def icdr_grade(lesions: Iterable[Lesion]) -> int:
    """Return the ICDR grade of an eye with these lesions.

    4: new vessels or a preretinal haemorrhage. 3: none of these, but more than 20 haemorrhages in each
    quadrant, or venous beading in two or more quadrants, or IRMA. 2: anything between 1 and 3. 1:
    microaneurysms only. 0: no lesions. The scale is defined on the whole retina; here only the photograph's
    field of view is counted.
    """
    quadrants: dict[str, Counter[tuple[bool, bool]]] = {}
    for lesion in lesions:
        quadrants.setdefault(lesion.kind, Counter())[lesion.quadrant] += 1
    if "NV" in quadrants or "PRH" in quadrants:
        return 4
    haemorrhages = quadrants.get("HE", Counter())
    everywhere = len(haemorrhages) == 4 and min(haemorrhages.values()) > HAEMORRHAGES_PER_QUADRANT
    if everywhere or len(quadrants.get("VB", ())) >= BEADING_QUADRANTS or "IRMA" in quadrants:
        return 3
    if not quadrants:
        return 0
    return 1 if set(quadrants) == {"MA"} else 2
