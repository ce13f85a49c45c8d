import pytest

from retarget.pope.graders import boxed, math

DIFFERENT = (
    (r"\frac{dV}{dt}=12", r"\frac{dV}{dt}=13"),
    (r"\frac{dV}{dt}=12", r"\frac{dV}{dx}=12"),
    (r"\frac{dV}{dt}=12", r"V=12"),
    (r"\frac{dy}{dx}=2x", r"\frac{dy}{dx}=3x"),
    (r"\frac{dy}{dx}=2x", r"y=2x"),
    (r"\frac{dy}{dx}=2x", r"dy/dx=3x"),
    (r"\frac{dy}{dx}=2x", r"\frac{d}{dx}y=3x"),
    (r"\frac{\partial u}{\partial t}=k", r"\frac{\partial u}{\partial t}=5k"),
    (r"\frac{dy}{dx}=\frac{y}{x}", r"\frac{dx}{dy}=\frac{y}{x}"),
    (r"x\frac{dy}{dx}-y=0", r"y=0"),
    (r"\frac{dy}{dx}", "0"),
    (r"\frac{d^2y}{dx^2}+y=0", "y=0"),
    (r"\frac{d^2y}{dx^2}=6", r"\frac{dy}{dx}=6"),
    (r"\frac{\partial^2 u}{\partial x\partial t}=1", r"\frac{\partial^2 u}{\partial x^2}=1"),
    (r"\frac{d(Vr)}{dt}=3", r"\frac{d(Vr)}{dt}=4"),
    (r"\frac{d\theta}{dt}=2", r"\frac{d\phi}{dt}=2"),
    (r"\frac{dx}{dt}=1, \frac{dy}{dt}=2", r"\frac{dx}{dt}=2, \frac{dy}{dt}=1"),
    ("y'=2x", "y'=3x"),
)
ALIKE = (
    (r"\frac{dy}{dx}=2x", r"\dfrac{dy}{dx}=x+x"),
    (r"\frac{dy}{dx}=2x", r"\frac{\mathrm{d}y}{\mathrm{d}x}=2x"),
    (r"\frac{dy}{dx}=2x", "dy/dx = 2x"),
    (r"\frac{dy}{dx}=2x", r"\frac{d}{dx} y = 2x"),
    (r"\frac{dy}{dx}=2x", r"\frac{dy(x)}{dx} = 2x"),
    (r"\frac{dy}{dx}=2x", "2x"),
    (r"\frac{dy}{dx}=-\frac{x}{y}", r"\frac{dy}{dx}=\frac{-x}{y}"),
    (r"\frac{dV}{dt}=12", "12"),
    (r"\frac{dV}{dt}=12\text{ cm}^3\text{/s}", r"\frac{dV}{dt}=12"),
    (r"\frac{d^2y}{dx^2}+y=0", r"y+\frac{d^2y}{dx^2}=0"),
    (r"\frac{\partial^2 u}{\partial x\partial t}=1", r"\frac{\partial^2 u}{\partial t\,\partial x}=1"),
    (r"\frac{dx}{dt}=1, \frac{dy}{dt}=2", r"\frac{dy}{dt}=2, \frac{dx}{dt}=1"),
    (r"x\frac{dy}{dx}-y=0", r"\frac{dy}{dx}x=y"),
    (r"\frac{d}{dx}x^2", "2x"),
    ("y'=2x", "2x"),
    (r"\frac{d}{2}", r"\frac12 d"),
)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_a_derivative_is_not_taken_for_0(one, other):
    for grader in (math, boxed):
        assert not grader(f"so $\\boxed{{{one}}}$", other, {}).correct
        assert not grader(f"so $\\boxed{{{other}}}$", one, {}).correct


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_a_derivative_may_be_written_in_several_ways(one, other):
    for grader in (math, boxed):
        assert grader(f"so $\\boxed{{{one}}}$", other, {}).correct
        assert grader(f"so $\\boxed{{{other}}}$", one, {}).correct
