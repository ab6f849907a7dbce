"""What each ingredient of a recipe is worth, by leaving one out at a time: `python -m benchmarks.ablations`."""

from benchmarks.equal_time import compare

WITHOUT = {
    "the recipe": [],
    "independent points in a batch": ["trainer.stratified=false"],
    "frequencies not learned": ["flow.activation=sincos"],
    "LipSwish": ["flow.activation=lipswish"],
    "two layers a block": ["flow=resflow", "flow.blocks=16", "flow.width=48", "flow.depth=2", "flow.coeff=0.99"],
    "bound 0.9": ["flow.coeff=0.9"],
    "no ActNorm": ["flow.actnorm=false"],
    "estimated log-determinants": ["estimator=russian_roulette"],
    "Adam for all": ["optimizer=adam"],
    "a slower Adam beside Muon": ["optimizer.adam_lr=5e-3"],
    "constant learning rate": ["trainer.schedule=constant"],
    "no weight average": ["trainer.ema_decay=0"],
}

if __name__ == "__main__":
    compare("ablations", __doc__.splitlines()[0], WITHOUT, ("rings", "checkerboard"), "experiment={data}_fast")
