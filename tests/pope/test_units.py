import pytest

from retarget.pope.graders import boxed, math

PREFIXES = (
    *(
        (f"5\\text{{ {gold}}}", f"5\\text{{ {said}}}", 0)
        for gold, said in (
            ("kW", "W"), ("kPa", "Pa"), ("kJ", "J"), ("V", "mV"), ("MeV", "keV"), ("N", "J"), ("mW", "MW"), ("ms", "s"),
            ("mg", "g"), ("kHz", "hertz"), ("A", "V"), ("m/s^2", "m/s"), ("kJ/kg", "J/kg"), ("square feet", "feet"),
        )
    ),
    *(
        (f"5\\text{{ {gold}}}", f"5\\text{{ {said}}}", 1)
        for gold, said in (
            ("kW", "kilowatts"), ("N", "newtons"), ("A", "amps"), ("rad", "radians"), ("Kg", "kg"), ("L", "liters"),
            ("J", "N m"), ("kJ/kg", "J/g"), ("dm^3", "L"), ("sq ft", "ft^2"),
            ("kilometers per hour", "km/h"), ("mph", "miles per hour"), ("W each", "kW"),
        )
    ),
    ("5\\mathrm{~MeV}", "5\\mathrm{~keV}", 0), ("5\\text{ kW}", "5", 1), ("5", "5\\text{ kW}", 1),
    ("5\\text{ J}", "5\\text{ N}\\cdot\\text{m}", 1), ("5\\text{ m/s}", "5\\mathrm{~m} \\cdot \\mathrm{s}^{-1}", 1),
)  # fmt: skip
POWERS = (
    ("3\\text{ cm}^2", "3\\text{ cm}^3", 0), ("3\\text{ cm}^2", "3\\text{ cm}", 0), ("3\\text{ cm}^2", "3", 1),
    ("3\\text{ cm}^2", "3\\text{cm}^{2}", 1), ("3\\text{ square cm}", "3\\text{ cm}^2", 1),
    ("3\\text{ cm^2}", "3 cm²", 1), ("3\\text{ cubic centimeters}", "3\\text{ cm}^2", 0),
    ("3\\text{ units}^2", "3\\text{ square units}", 1),
)  # fmt: skip
SIGNS = (
    ("5^\\circ", "5\\text{ rad}", 0), ("5^{\\circ}", "5\\text{ degrees}", 1), ("5°", "5", 1),
    ("5^\\circ\\mathrm{C}", "5^\\circ", 1), ("\\$5", "5\\text{ cents}", 0), ("\\$5", "5 dollars", 1),
    ("\\$5", "5", 1), ("\\$5", "\\$5\\text{ per hour}", 1), ("5'", "5''", 0), ("5'", "5\\text{ ft}", 1), ("5'", "5", 1),
    ("5^\\circ 30'", "5^\\circ 30''", 0),
)  # fmt: skip

SCALES = (
    *(
        (gold, said, right)
        for one, other, right in (
            ("25^\\circ\\mathrm{C}", "25^\\circ\\mathrm{F}", 0), ("25^\\circ\\mathrm{C}", "25\\text{ K}", 0),
            ("25°C", "25°F", 0), ("25°C", "26°C", 0), ("25^\\circ C", "25^\\circ F", 0),
            ("25\\text{ degrees Celsius}", "25\\text{ degrees Fahrenheit}", 0),
            ("25^\\circ C", "25", 1), ("25^\\circ C", "25^\\circ", 1), ("25^{\\circ} C", "25°C", 1),
            ("25^\\circ C", "25\\text{ degrees Celsius}", 1), ("273\\text{ K}", "273\\text{ kelvin}", 1),
            ("60\\text{ mph}", "60\\text{ km/h}", 0), ("60 mph", "60 km/h", 0),
            ("60\\text{ mph}", "60\\text{ mi/h}", 1),
            ("5\\text{ miles per hour}", "5\\text{ km per hour}", 0),
            ("3\\text{ mol/L}", "3\\text{ g/L}", 0), ("3\\text{ M}", "3\\text{ m}", 0), ("3 M", "3 m", 0),
            ("3\\text{ mM}", "3\\text{ M}", 0), ("3\\text{ M}", "3\\text{ mol/L}", 1),
            ("3\\text{ g/mol}", "3\\text{ g}", 0), ("100 mg", "100 g", 0), ("5 ms", "5 s", 0), ("100 g", "100", 1),
            ("100 mg", "100\\text{ mg}", 1), ("3\\text{ V}", "3\\text{ C}", 0),
        )
        for gold, said in ((one, other), (other, one))
    ),
)  # fmt: skip


@pytest.mark.parametrize(("gold", "said", "right"), [*PREFIXES, *POWERS, *SIGNS, *SCALES])
def test_different_units_are_different_answers(gold, said, right):
    for grader in (math, boxed):
        assert grader(f"Thus $\\boxed{{{said}}}$.", gold, {}).reward == right
