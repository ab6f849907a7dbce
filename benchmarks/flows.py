"""KL of every flow on every density at equal time: `python -m benchmarks.flows`.

Each flow is as its config has it, residual ones with the exact log-determinant and the bound that fits best.
"""

from benchmarks.equal_time import compare

DENSITIES = ("moons", "circles", "rings", "checkerboard", "8gaussians", "2spirals", "swissroll", "pinwheel",
             "4circles", "diamond")  # fmt: skip
FLOWS = {
    "iresnet": ["flow=iresnet", "estimator=exact", "flow.coeff=0.97"],
    "resflow": ["flow=resflow", "estimator=exact", "flow.coeff=0.99"],
    "idensenet": ["flow=idensenet"],
    "implicit": ["flow=implicit"],
    **{name: [f"flow={name}"] for name in ("nice", "realnvp", "maf", "nsf", "ffjord")},
}

if __name__ == "__main__":
    compare("flows", __doc__.splitlines()[0], FLOWS, DENSITIES, "data={data}", (60.0, 300.0))
