import pytest

from retarget.pope.graders import boxed, math

OPTIONS = (
    ("(A), (B), (C), (D)", "A", 0),
    ("\\text{(A) or (B)}", "A", 0),
    ("(A) or D", "A", 0),
    ("A or B", "A", 0),
    ("A) 5, B) 6", "A", 0),
    ("A) 5", "A", 1),
    ("option A", "(A)", 1),
    ("(A), (B)", "(A), (C)", 0),
    ("(A)", "(A), (C)", 0),
    ("(C), (A)", "(A), (C)", 1),
    ("A, C", "(A), (C)", 1),
    ("C \\text{ and } A", "(A), (C)", 1),
    ("(A) 5, (C) 6", "(A), (C)", 1),
    ("(A) 5, (C) 7", "(A) 5, (C) 6", 0),
    ("A: 7, B: 9", "A: 3, B: 5", 0),
    ("A, B", "A: 3, B: 5", 0),
    ("B: 5, A: 3", "A: 3, B: 5", 1),
    ("\\frac12", "(A) \\frac{1}{2}", 1),
    (",", "\\text{(E)},", 0),
)
MIXED = (
    ("7/2", "3 1/2", 1),
    ("3.5", "3 1/2", 1),
    ("31/2", "3 1/2", 0),
    ("3 1/2", "31/2", 0),
    ("2 \\frac12", "2\\frac{1}{2}", 1),
    ("2\\ 1/2", "2\\frac{1}{2}", 1),
    ("-2\\frac{1}{2}", "-2.5", 1),
    ("-2\\frac{1}{2}", "-1.5", 0),
    ("10000", "10 000", 1),
    ("10\\,000", "10000", 1),
    ("\\begin{pmatrix}1\\\\ 2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", 1),
)
SMALL = (
    ("1.6\\times10^{-19}", "6.63\\times 10^{-34}", 0),
    ("6.63 \\times 10^{-34}", "6.63\\times10^{-34}", 1),
    ("0.0000003", "0.0000001", 0),
    ("0", "0.0000001", 0),
    ("1\\times10^{-7}", "0.0000001", 1),
    ("0.333333", "\\frac{1}{3}", 1),
    ("0.3333", "\\frac{1}{3}", 0),
    ("0.1", "10\\%", 1),
    ("10", "10\\%", 1),
    ("x = .5", "\\frac12", 1),
)
E19 = "1.6\\times10^{-19}\\text{ C}"
PHYSICAL = (
    *((f"9.9\\times10^{{-19}}{unit}", f"1.6\\times10^{{-19}}{unit}", 0) for unit in (
        "\\text{ C}", "\\text{ J}", "\\text{ N}", "\\text{ J s}", "\\text{ J}\\cdot\\text{s}",
        "\\mathrm{~kg}/\\mathrm{m}^3",
    )),
    *((f"9.9e-19{unit}", f"1.6e-19{unit}", 0) for unit in ("", " C", "\\text{ C}", " J s")),
    *((said, E19, 1) for said in (
        "1.60 \\times 10^{-19}\\text{ C}", "1.6e-19\\text{ C}", "1.6e-19 C", "16\\times10^{-20}",
    )),
    *((E19, said, 1) for said in ("1.6\\times 10^{-19}\\text{ C}", "1.6e-19\\text{ C}", "1.6e-19 C", "1.6e-19")),
    *((said, E19, 0) for said in (
        "0", "1.6\\times10^{-18}\\text{ C}", "-1.6\\times10^{-19}\\text{ C}", "0\\text{ C}",
    )),
    ("q=1.7\\times10^{-19}\\text{ C}", "q=1.6\\times10^{-19}\\text{ C}", 0), ("q=1.6e-19 C", E19, 1),
    ("1.6\\pi\\times10^{-7}", "1.5\\pi\\times10^{-7}", 0), ("1.5\\times10^{-7}\\pi", "1.5\\pi\\times10^{-7}", 1),
    ("0.5\\text{ J}", "\\frac12\\text{ J}", 1), ("2e-3", "2e-4", 0), ("e-2", "-2+e", 1), ("9.424778", "3\\pi", 1),
)  # fmt: skip
WHOLE = (
    ("p \\equiv 3 \\pmod 4", "p \\equiv 1 \\pmod 4", 0),
    ("4", "p \\equiv 1 \\pmod 4", 0),
    ("$p\\equiv1\\pmod{4}$", "p \\equiv 1 \\pmod 4", 1),
    ("p \\equiv 1 \\left(\\text{mod } 4\\right)", "p \\equiv 1 \\pmod{4}", 1),
    ("n \\equiv 1 \\pmod{5}", "n \\equiv 1 \\pmod{3}", 0),
    ("12", "x \\mid 12", 0),
    ("x\\mid12", "x \\mid 12", 1),
    ("3", "x \\to 3", 0),
    ("3:5:4", "3:4:5", 0),
    ("3 : 4 : 5", "3:4:5", 1),
    ("3/4", "3:4", 1),
    ("\\begin{cases}0\\end{cases}", "f(x)=\\left\\{\\begin{array}{l}x\\\\ 0\\end{array}\\right.", 0),
)
BASES = (
    ("11_2", "11", 0),
    ("1011_2", "11", 0),
    ("11_{10}", "11", 1),
    ("1{,}000_{\\text{ten}}", "1,000", 1),
    ("2516", "2516_8", 1),
    ("2516_{9}", "2516_8", 0),
    ("2516_{\\text{eight}}", "2516_8", 1),
    ("12_5", "(A) 12_5", 1),
    ("12_6", "(A) 12_5", 0),
)
SYMBOLS = (
    ("7", "3+4\\mathrm{i}", 0),
    ("4+3\\mathrm{i}", "3+4\\mathrm{i}", 0),
    ("4\\mathrm{i}+3", "3+4\\mathrm{i}", 1),
    ("3+4\\mathrm i", "3+4i", 1),
    ("2\\sqrt3\\mathrm{i}", "2\\sqrt3", 0),
    ("2\\mathrm{e}^{3}", "2\\mathrm{e}^{2}", 0),
    ("2e^2", "2\\mathrm{e}^{2}", 1),
    ("2\\mathbf{i}+3\\mathbf{j}", "2\\mathbf{i}-3\\mathbf{j}", 0),
    ("3\\mathbf{a}", "3\\mathbf{b}", 0),
    ("5\\mathrm{m}", "5", 1),
    ("0", "\\pi(R^2-r^2)", 0),
    ("\\pi(r^2-R^2)", "\\pi(R^2-r^2)", 0),
    ("\\pi(R-r)(R+r)", "\\pi(R^2-r^2)", 1),
    ("1", "\\frac{R}{r}", 0),
    ("\\frac rR", "\\frac{R}{r}", 0),
    ("-r+R", "R-r", 1),
    ("-r+R_1", "R_1-r", 1),
    ("R_1+r", "R_1-r", 0),
    ("r_1-R_1", "R_1-r_1", 0),
    ("R_{12}r", "rR_{12}", 1),
)
EQUATIONS = (
    ("x+2y=5", "x+2y-5=0", 1),
    ("2x+4y=10", "x+2y=5", 1),
    ("x+2y=6", "x+2y=5", 0),
    ("3x^2+4y^2=12", "\\frac{x^2}{4}+\\frac{y^2}{3}=1", 1),
    ("2x-y+3z=8", "2x-y+3z-8=0", 1),
    ("2x-y+3z=9", "2x-y+3z-8=0", 0),
    ("y-2x=1", "y=2x+1", 1),
    ("\\frac{1+\\sqrt5}{2}, \\frac{1-\\sqrt5}{2}", "\\frac{1 \\pm \\sqrt{5}}{2}", 1),
    ("\\frac12 \\pm \\frac{\\sqrt5}{2}", "\\frac{1 \\pm \\sqrt{5}}{2}", 1),
    ("\\frac{1+\\sqrt5}{2}", "\\frac{1 \\pm \\sqrt{5}}{2}", 0),
    ("2, -2", "\\pm 2", 1),
    ("2", "\\pm 2", 0),
    ("2\\mp\\sqrt3", "2\\pm\\sqrt3", 1),
    ("1+i,1-i,-1+i,-1-i", "\\pm 1 \\pm i", 1),
    ("\\pm 1 \\pm i", "1+i,1-i,-1+i,-1-i", 1),
    ("\\pm i \\pm 1", "\\pm 1 \\pm i", 1),
    ("1+i,-1-i", "\\pm 1 \\pm i", 0),
    ("\\pm 1 \\pm i", "1+i,-1-i", 0),
    ("1-i,-1+i", "\\pm 1 \\mp i", 1),
    ("1+i,1-i,-1+i,-1-i", "\\pm 1 \\mp i", 0),
    ("\\pm 1 \\mp i", "\\pm 1 \\pm i", 0),
    ("\\sqrt2,\\sqrt3,-\\sqrt2,-\\sqrt3", "\\pm\\sqrt2, \\pm\\sqrt3", 1),
    ("(1,2),(1,-2),(-1,2),(-1,-2)", "(\\pm 1, \\pm 2)", 1),
    ("(1,2),(-1,-2)", "(\\pm 1, \\pm 2)", 0),
    ("x=\\pm 1, y=\\pm 2", "x=\\pm1, y=\\pm2", 1),
    ("(3, 2)", "p=2,q=3", 0),
    ("(2, 3)", "p=2,q=3", 1),
    ("2,-1", "m=-1,n=2", 0),
    ("n=2, m=-1", "m=-1,n=2", 1),
    ("a=1, b=2", "c=1, d=2", 0),
)
WORDS = (
    ("n \\text{ is even}", "n \\text{ is odd}", 0),
    ("n", "n \\text{ is odd}", 0),
    ("n \\text{ is odd}", "n", 0),
    ("m \\text{ is odd}", "n \\text{ is odd}", 0),
    ("\\text{odd } n", "n \\text{ is odd}", 1),
    ("n=2", "all $n$ except $n=2$", 0),
    ("\\text{all } n \\text{ except } n=2", "all $n$ except $n=2$", 1),
    ("\\text{all } n \\text{ except } n=3", "all $n$ except $n=2$", 0),
    ("n", "All odd $n$", 0),
    ("all odd $n$", "All odd $n$", 1),
    ("4", "$3$ for $n=4$", 0),
    ("3", "$3$ for $n=4$", 0),
    ("6 \\text{ for } n=8", "$3$ for $n=4$", 0),
    ("3 \\text{ for } n=4", "$3$ for $n=4$", 1),
    ("\\text{Monday}", "\\text{Sunday}", 0),
    ("monday", "\\text{Monday}", 1),
    ("Bob and Alice", "\\text{Alice, Bob}", 1),
    ("9 \\text{ p.m.}", "9 \\text{ a.m.}", 0),
    ("5 \\text{ million}", "5", 0),
    ("5 \\text{ or more}", "5", 0),
    ("5", "5 \\text{ square inches}", 1),
    ("5\\text{ cm}^2", "5", 1),
    ("5 apples", "5", 1),
    ("60 \\text{ miles per hour}", "60", 1),
    ("[0, 1]\\text{ cm}", "[0,1]", 1),
    ("5 \\text{ or } 3", "3 \\text{ and } 5", 1),
    ("\\text{The answer is } 5", "5", 1),
    ("\\text{Area} = 12", "12", 1),
    ("\\text{Area} = 12", "13", 0),
    ("ba", "ab", 1),
    ("y = 5", "x = 5", 0),
    ("\\sqrt{12}", "2\\sqrt{3}", 1),
    ("\\infty", "infinity", 1),
)
LISTS = (
    ("1,2,2", "1,1,2", 0),
    ("2, 1, 1", "1, 1, 2", 1),
    ("1, 2", "1, 1, 2", 0),
    ("2, 3, 2", "2, 3", 0),
    ("-1,3,3", "-1,-1,3", 0),
    ("12, 15, 15", "12, 12, 15", 0),
    ("12, 15 \\text{ and } 12", "12, 12, 15", 1),
    ("4", "4,4", 0),
    ("4,4", "4", 0),
    ("x=1,2,2", "x=1,1,2", 0),
    ("0.5, 1, \\frac12", "1, 0.5, 0.5", 1),
    ("1, 1, 0.5", "1, 0.5, \\frac12", 0),
    ("(2,3)", "2,3", 1),
    ("1000, 5, 5", "1,000, 1,000, 5", 0),
    ("5, 1000, 1000", "1,000, 1,000, 5", 1),
    ("5, 10, 100", "5,10,100", 1),
    ("1,1,2", "\\{1,2\\}", 1),  # a set has no order and no repetitions
    ("x=2 \\text{ or } x=2", "2", 1),  # a double root
    ("x=2,2,3", "2,3", 1),
    ("x=2,3", "2,2,3", 0),
)
MARKS = (
    ("f(x)=2x", "f'(x)=2x", 0),
    ("f'(0)", "f''(0)", 0),
    ("y'", "y''", 0),
    ("P(A)", "P(A')", 0),
    ("A'B", "AB'", 0),
    ("A'B+AB'", "A'B'+AB", 0),
    ("\\theta", "\\theta'", 0),
    ("x^2+y^2=1", "x'^2+y'^2=1", 0),
    ("uv'+vu'", "u'v+uv'", 1),
    ("y''+y=2y'", "y''-2y'+y=0", 1),
    ("f^{\\prime\\prime}(x)", "f''(x)", 1),
    ("f′(x)", "f'(x)", 1),
    ("f'(x)=2x", "2x", 1),
    ("f'(1)=3, f'(2)=4", "3, 4", 1),
    ("'x'", "x", 1),
    ("5'", "5", 1),
    ("5.5", "5\\frac12'", 1),
    ("\\text{Alice's}", "Alice's", 1),
    ("A", "A^T", 0),
    ("xy", "x^T y", 0),
    ("(A A)^{-1}A b", "(A^T A)^{-1}A^T b", 0),
    ("P(1+r)", "P(1+r)^T", 0),
    ("P(r+1)^{T}", "P(1+r)^T", 1),
    ("B+A^{\\mathsf{T}}A", "A^\\top A+B", 1),
    ("A^T=1", "1", 1),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}^T", 0),
)


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [*OPTIONS, *MIXED, *SMALL, *PHYSICAL, *WHOLE, *BASES, *SYMBOLS, *EQUATIONS, *WORDS, *LISTS, *MARKS],
)
def test_answers_are_the_same_only_as_a_whole(said, gold, right):
    for grader in (math, boxed):
        assert grader(f"so \\boxed{{{said}}}", gold, {}).reward == right


@pytest.mark.parametrize(
    "gold",
    sorted(
        {
            gold
            for _, gold, _ in [
                *OPTIONS,
                *MIXED,
                *SMALL,
                *PHYSICAL,
                *WHOLE,
                *BASES,
                *SYMBOLS,
                *EQUATIONS,
                *WORDS,
                *LISTS,
                *MARKS,
            ]
        }
    ),
)
def test_every_answer_equals_itself(gold):
    assert math(f"\\boxed{{{gold}}}", gold, {}).correct


def test_a_piecewise_function_is_read_out_of_its_box():
    gold = "f(x)=\\left\\{\\begin{array}{ll}x & x\\ge 0\\\\ -x & x<0\\end{array}\\right."
    assert math(f"Hence $\\boxed{{{gold}}}$.", gold, {}).extracted == gold
    assert math(f"Hence $\\boxed{{{gold}}}$.", gold, {}).correct
    assert not math(f"Hence $\\boxed{{{gold}}}$.".replace("-x", "2x"), gold, {}).correct
