import pytest

from drgrade.synthetic.icdr import Lesion, icdr_grade

CORNERS = [(0.3, 0.3), (0.3, -0.3), (-0.3, 0.3), (-0.3, -0.3)]


def lesions(kind: str, counts: tuple[int, int, int, int]) -> list[Lesion]:
    return [Lesion(kind, x, y, 0.02) for (x, y), n in zip(CORNERS, counts, strict=True) for _ in range(n)]


# Cases read off table 2 of Wilkinson et al. 2003.
@pytest.mark.parametrize(
    ("found", "grade"),
    [
        ([], 0),
        (lesions("MA", (1, 0, 0, 0)), 1),
        (lesions("MA", (30, 30, 30, 30)), 1),
        (lesions("HE", (1, 0, 0, 0)), 2),
        (lesions("MA", (3, 0, 0, 0)) + lesions("EX", (1, 0, 0, 0)), 2),
        (lesions("SE", (1, 0, 0, 0)), 2),
        (lesions("HE", (21, 21, 21, 20)), 2),
        (lesions("HE", (60, 60, 60, 0)), 2),
        (lesions("HE", (21, 21, 21, 21)), 3),
        (lesions("MA", (21, 21, 21, 21)) + lesions("HE", (5, 5, 5, 5)), 2),
        (lesions("VB", (3, 0, 0, 0)), 2),
        (lesions("VB", (1, 0, 0, 1)), 3),
        (lesions("IRMA", (0, 1, 0, 0)), 3),
        (lesions("NV", (1, 0, 0, 0)), 4),
        (lesions("PRH", (1, 0, 0, 0)), 4),
        (lesions("HE", (21, 21, 21, 21)) + lesions("NV", (1, 0, 0, 0)), 4),
    ],
)
def test_grade_follows_the_scale(found: list[Lesion], grade: int) -> None:
    assert icdr_grade(found) == grade
    assert icdr_grade(reversed(found)) == grade
