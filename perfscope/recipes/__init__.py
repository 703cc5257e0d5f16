"""Recipes: one readable file per speedrun, found by its name (`perfscope.registry`). This is what such a file holds.

    '''First line: what it trains and how fast it claims to be. Then: source, what is different here.'''
    DATASET = "mnist"                       # a name of perfscope.workload.datasets: mnist, cifar10, images
    TARGET = 0.99                           # accuracy on the evaluation images that a certificate is about

    @dataclass(frozen=True)
    class Settings(tricks.Settings):        # hyperparameters at the top: this recipe's defaults, and fields of its own
        epochs: float = 2.0
        width: int = 24

    VARIANTS = {"": Settings(), "wide": Settings(width=48)}       # `perfscope speedrun NAME:wide`
    def model(s: Settings) -> nn.Module     # float32, on the CPU, freshly initialised from torch's global generator
    def train(data, s, seed, log, ranks) -> Tensor

`train` is what the clock runs around. It gets raw data that is on the device already and gives the evaluation images'
logits (n, classes), on that device, in their order:

    data    perfscope.workload.datasets.Dataset; uint8 images (n, c, h, w), int64 labels. `test_labels` is None
            unless the settings stop early: nobody can look at them by mistake.
    s       the settings of this run
    seed    of the weights, the order of the images and every augmentation: the same seed, settings and ranks give the
            same run. Call torch.manual_seed(seed) before the model is made.
    log     log(epoch, loss) as often as wanted; `loss` may be a tensor on the device, read after the clock has stopped.
            log.trained(net) once at the end: what a checkpoint saves.
    ranks   perfscope.measure.ranks.Ranks: `rank`, `size`; a world of one has size 1.

Most recipes are one line: `return fit(model, data, s, seed, log, ranks)` with perfscope.tricks.loop.fit, which
knows every field of tricks.Settings except those of the network. A recipe may have a loop of its own. It may keep
compiled code and captured graphs from one call to the next, but nothing that was learnt and nothing read from the data.

Optional in the file:

    WITH, WITHOUT    {trick: {field: value}}: what switching a trick on or off means here, where that is not what
                     perfscope.tricks.TRICKS says, or for a trick of this recipe alone: `tricks` of that kind need a line
                     in OWN = {trick: "definition and source"}
    REFUSES          {trick: reason}: what makes no sense here ("a mirrored digit is another sign")
    LADDER           recipe:variant names, slowest first, for `--ladder`
    PUBLISHED        {variant: {"time_s":, "accuracy":, "hardware":, "source":}} for the report
    check(s)         raises UsageError for settings that only this recipe can judge
"""
