"""A job and a host's offer to begin with."""

from roost.jobs.model import Job, JobState
from roost.ports.values import Ask, Image, Offer, PurchaseOption, Resources

IMAGE = Image(name="python", python="3.11")
SPOT = Offer(
    provider="aws",
    region="r",
    zone="r-1",
    instance_type="m5.large",
    purchase_option=PurchaseOption.SPOT,
    price_usd_hour=0.03,
    on_demand_usd_hour=0.1,
    resources=Resources(vcpus=2, memory_gib=8),
)
JOB = Job(
    id="j-1",
    name="train",
    state=JobState.ACCEPTED,
    epoch=0,
    token="t",
    argv=("python", "train.py"),
    ask=Ask(),
    image=IMAGE,
    files="sent",
)
