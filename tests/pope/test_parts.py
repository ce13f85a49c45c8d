import pytest

from retarget.pope.graders import boxed, math

IN_TEXT = (
    ("\\text{12 cm}", "\\text{13 cm}", 0), ("\\text{June 20}", "\\text{June 21}", 0), ("\\text{June 20}", "June 20", 1),
    ("\\text{June 20}", "\\text{June}", 0), ("\\text{6:00 PM}", "\\text{7:00 PM}", 0),
    ("\\text{6:00 PM}", "6:00\\text{ p.m.}", 1), ("5\\text{ A.M.}", "5\\text{ P.M.}", 0),
    ("\\text{3/4 cup}", "\\text{1/4 cup}", 0), ("\\text{Player A wins}", "\\text{Player B wins}", 0),
    ("\\text{Player A}", "\\text{Player } A", 1), ("\\text{Only C}", "\\text{Only D}", 0),
    ("\\text{n is odd}", "\\text{m is odd}", 0), ("\\text{n is odd}", "n \\text{ is odd}", 1),
    ("\\text{Yes, when n=3}", "\\text{Yes, when n=4}", 0), ("\\text{4th}", "\\text{5th}", 0),
    ("\\text{January 5, 2020}", "\\text{January 15, 2021}", 0), ("\\text{Row B2}", "\\text{Row B3}", 0),
    ("\\text{Alice beats Bob}", "\\text{Bob beats Alice}", 0), ("\\text{Alice, Bob}", "\\text{Bob and Alice}", 1),
    ("\\text{12 apples}", "12", 1), ("12", "\\text{12 apples}", 1), ("12", "\\textbf{12 hours}", 1),
    ("12", "\\mathrm{12\\,cm}", 1), ("12", "\\text{12\\%}", 1), ("12", "\\text{13 apples}", 0),
)  # fmt: skip
SEVERAL = (
    ("3", "3\\text{ cm}, 4\\text{ cm}, 5\\text{ cm}", 0), ("3", "3\\text{ m or }4\\text{ m}", 0),
    ("3\\text{ cm}, 4\\text{ cm}", "3\\text{ cm}, 5\\text{ cm}", 0), ("3", "3\\text{ (first)}, 4\\text{ (second)}", 0),
    ("24 \\mathrm{~km} / \\mathrm{h}, 32 \\mathrm{~km} / \\mathrm{h}", "24 \\text{ km/h}, 30 \\text{ km/h}", 0),
    ("24 \\mathrm{~km} / \\mathrm{h}, 32 \\mathrm{~km} / \\mathrm{h}", "24 \\text{ km/h}, 32 \\text{ km/h}", 1),
    ("3\\text{ red}, 4\\text{ blue}", "3\\text{ red}, 5\\text{ blue}", 0),
    ("3\\text{ red}, 4\\text{ blue}", "4\\text{ red}, 3\\text{ blue}", 0),
    ("3\\text{ red}, 4\\text{ blue}", "4\\text{ blue}, 3\\text{ red}", 1),
    ("3\\text{ red}, 4\\text{ blue}", "4, 3", 0), ("3\\text{ red}, 4\\text{ blue}", "3, 4", 1),
    ("5\\mathrm{~h}30\\mathrm{~min}", "5\\mathrm{~h}40\\mathrm{~min}", 0),
    ("5\\mathrm{~h}30\\mathrm{~min}", "5\\text{ hours }30\\text{ minutes}", 1),
    ("5\\mathrm{~h}30\\mathrm{~min}", "5\\mathrm{~h}", 0), ("2 \\text{ min } 15 \\text{ s}", "25\\text{ s}", 0),
    ("2 \\text{ min } 15 \\text{ s}", "2 \\text{ min } 25 \\text{ s}", 0),
    ("2\\mathrm{~cm}, 3\\mathrm{~cm}", "2, 3", 1),
    ("2\\mathrm{~cm}, 3\\mathrm{~cm}", "3, 2", 1), ("2\\mathrm{~cm}, 3\\mathrm{~cm}", "2, 4", 0),
    ("3\\text{ hours}", "3\\text{ minutes}", 0), ("3\\text{ hours}", "3\\text{ hr}", 1),
    ("12", "12\\,\\text{cm}^2", 1),
)  # fmt: skip
PLAIN_UNITS = (
    *((f"12 {unit}", "12", 1) for unit in ("dollars", "people", "games", "rubles", "km/h", "cm^2", "cm²")),
    *(("12", f"12 {unit}", 1) for unit in ("dollars", "cm^2", "m/s", "square inches")),
    *((gold, "5", 1) for gold in ("5°C", "¥5", "Rs. 5", "US\\$5", "5个", "5元")), ("5", "5 or more", 0),
    ("5", "5多", 0), ("5", "5万", 0), ("42", "€42", 1), ("42", "£42", 1), ("42", "€43", 0), ("2", "2ab", 0),
    ("16t", "16", 0), ("2t", "2c", 0),
    ("4\\pi t", "4\\pi", 0), ("t+s", "s+t", 1), ("2ab", "2ba", 1), ("\\frac{1}{2}h", "\\frac{h}{2}", 1),
    ("5", "5a", 0), ("5", "5 x", 0), ("6", "6xyz", 0), ("12", "12 odd numbers", 0),
)  # fmt: skip
OPTIONS = (
    ("15", "(C) 15", 1), ("15", "C. 15", 1), ("15", "\\text{(C) } 15", 1), ("15", "(C) 16", 0), ("15", "\\text{C}", 0),
    ("AC", "A, C", 1), ("AC", "A, D", 0), ("ABD", "\\text{A, B, D}", 1), ("ABD", "A, B", 0),
    ("C", "\\text{Option C}", 1),
    ("C", "\\text{Option D}", 0), ("5", "A\\,5", 0),
)  # fmt: skip
ORDERED = (
    ("ABCD", "BADC", 0), ("BA", "AB", 0), ("\\text{BADC}", "BADC", 1), ("\\angle ABC", "\\angle ACB", 0),
    ("\\angle ABC", "\\angle CBA", 1), ("\\overline{AB}", "\\overline{BA}", 1), ("\\triangle ABC", "\\triangle ABD", 0),
    ("ba", "ab", 1), ("\\{1,2\\}", "(1,2)", 0), ("\\{1,2\\}", "(2,1)", 0), ("(0,1)", "\\{0,1\\}", 0),
    ("\\{1,2\\}", "\\{2,1\\}", 1), ("\\{1,2\\}", "1, 2", 1),
)  # fmt: skip
RANGES = (
    ("[0,1)", "0 \\le x < 1", 1), ("[0,1)", "0 < x \\le 1", 0), ("(2,\\infty)", "x>2", 1), ("(2,\\infty)", "x<2", 0),
    ("(2,\\infty)", "x \\ge 2", 0), ("(1,3)", "1<x<3", 1), ("(1,3)", "3>x>1", 1), ("x\\in[1,2]", "1\\le x\\le 2", 1),
    ("(-\\infty, 2] \\cup [3,\\infty)", "x\\le 2 \\text{ or } x \\ge 3", 1),
    ("m \\leq -1 \\text{ or } m\\geq 2", "(-\\infty,-1]\\cup[2,\\infty)", 1), ("a=1,b=2", "b=2,a=1", 1),
    ("a=1,b=2", "b=1,a=2", 0), ("3i,-3i", "\\{-3i, 3i\\}", 1),
)  # fmt: skip
TINY = (
    ("\\frac{1}{2^{100}}", "\\frac{1}{2^{101}}", 0), ("\\frac{1}{2^{100}}", "2^{-100}", 1),
    ("1-2^{-100}", "1-2^{-99}", 0), ("1-2^{-100}", "\\frac{2^{100}-1}{2^{100}}", 1),
    ("\\frac{1}{51!}", "\\frac{1}{50!}", 0), ("e^{-100}", "e^{-99}", 0),
    ("P=\\frac{1}{3^{50}}", "\\frac{2}{3^{50}}", 0), ("(\\sqrt2-1)^{50}", "\\frac{1}{(\\sqrt2+1)^{50}}", 1),
    ("(\\sqrt2-1)^{50}", "(\\sqrt2-1)^{51}", 0), ("\\sqrt{5-2\\sqrt6}", "\\sqrt3-\\sqrt2", 1),
    ("10^{10^{9}}", "10^{10^9}", 1), ("\\frac13", "0.333333333", 1), ("50\\%", "\\frac12", 1),
)  # fmt: skip
DIVISORS = (
    ("\\gcd(m,n)", "1", 0), ("m+n-\\gcd(m,n)", "m+n-1", 0), ("m+n-\\gcd(m,n)", "m+n-\\gcd(n,m)", 1),
    ("\\operatorname{lcm}(a,b)", "ab", 0), ("\\gcd(a,b)", "\\gcd(a,c)", 0), ("\\gcd(a,b)", "\\text{gcd}(b, a)", 1),
    ("\\operatorname{lcm}(m,n)", "\\frac{mn}{\\gcd(n,m)}", 1), ("\\operatorname{lcm}(a,b,c)", "abc", 0),
    ("\\gcd(M,n)", "\\gcd(m,n)", 0), ("\\frac{m}{\\gcd(m,n)}", "m/\\gcd(n,m)", 1),
    ("2^{\\gcd(m,n)}-1", "2^{\\gcd\\left(n,m\\right)}-1", 1), ("2^{\\gcd(m,n)}-1", "1", 0), ("6", "\\gcd(12,18)", 1),
)  # fmt: skip
SIGNS = (
    ("\\emptyset", "\\varnothing", 1), ("\\varphi(n)+1", "1+\\phi(n)", 1), ("\\emptyset", "\\{0\\}", 0),
    ("\\varphi(n)", "\\phi(m)", 0),
)  # fmt: skip
COLUMN, ROW, ANGLES = (
    "\\begin{pmatrix}3\\\\-1\\end{pmatrix}",
    "\\begin{bmatrix}3&-1\\end{bmatrix}",
    "\\langle 3,-1\\rangle",
)
VECTORS = (
    *((gold, said, 1) for gold in (COLUMN, ROW, ANGLES) for said in (COLUMN, ROW, ANGLES, "(3,-1)")),
    (COLUMN, "\\left( 3, -1 \\right)", 1),
    *(("(3,-1)", said, 1) for said in (COLUMN, ROW, ANGLES, "\\left\\langle 3, -1\\right\\rangle")),
    *((COLUMN, said, 0) for said in ("(-1,3)", "(3,1)", "\\langle 3,-1,0\\rangle", "3,-1", "\\{3,-1\\}", "[3,-1]")),
    (COLUMN, "-1<x<3", 0),
    (COLUMN, "\\left[\\begin{array}{c} 3 \\\\ -1 \\end{array}\\right]", 1),
    (COLUMN, "\\vec v = \\langle 3,-1 \\rangle", 1),
    ("a=(3,-1)", "b=\\langle 3,-1 \\rangle", 0), ("\\langle 1/2, 2, t\\rangle", "(0.5, 2, t)", 1),
    ("(0,1)", "\\langle 0,1\\rangle", 0),
    ("[0,1]", "\\langle 0,1\\rangle", 0), ("\\langle 0,1\\rangle", "(0,1)", 0),
    ("\\langle 0,1\\rangle", "\\langle 0,1 \\rangle", 1),
    ("\\begin{pmatrix}0\\\\1\\end{pmatrix}", "\\langle 0,1\\rangle", 1),
    ("\\begin{pmatrix}0\\\\1\\end{pmatrix}", "(0,1)", 1),
    ("\\langle u,v\\rangle", "(u,v)", 0), ("\\langle u,v\\rangle", "\\langle v,u\\rangle", 0),
    ("(0,\\infty)", "\\langle 0,\\infty\\rangle", 0),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "(1,2,3,4)", 0),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}", 0),
    ("\\begin{vmatrix}3\\\\-1\\end{vmatrix}", "(3,-1)", 0), ("\\begin{pmatrix}1,000\\\\2\\end{pmatrix}", "(1000,2)", 1),
    ("\\binom{3}{1}", "(3,1)", 0),
)  # fmt: skip
BARE_WORDS = (
    ("cat", "act", 0), ("cat", "cat", 1), ("cat", "c a t", 1), ("cat", "\\text{cat}", 1), ("cat", "\\text{act}", 0),
    ("red", "der", 0),
    ("abc", "bca", 1), ("lwh", "hlw", 1), ("abc", "abd", 0), ("3abc", "3cab", 1), ("xyz", "zyx", 1),
)  # fmt: skip
DOTS = (
    ("12", "12\\ldots", 0), ("12", "12...", 0), ("12", "12…", 0), ("12\\ldots", "12", 0), ("1,2,3", "1,2,3,\\ldots", 0),
    ("1, 2, 10", "1, 2, \\ldots, 10", 0), ("1,2,\\ldots,10", "1, 2, \\dots, 10", 1), ("\\frac13", "0.333333\\ldots", 1),
    ("\\frac13", "0.333333...", 1), ("12", "12.", 1),
)  # fmt: skip
CASES = (
    *VECTORS,
    *BARE_WORDS,
    *DOTS,
    *IN_TEXT,
    *SEVERAL,
    *PLAIN_UNITS,
    *OPTIONS,
    *ORDERED,
    *RANGES,
    *TINY,
    *DIVISORS,
    *SIGNS,
)


@pytest.mark.parametrize(("gold", "said", "right"), CASES)
def test_every_part_of_an_answer_counts(gold, said, right):
    for grader in (math, boxed):
        assert grader(f"Thus $\\boxed{{{said}}}$.", gold, {}).reward == right
