"""What `--dry-run` says of where actors lie."""

from actors.placement import needed_resources
from actors.placement_plan import placement_lines
from larpo.config import Config


def lines(**sections) -> list[str]:
    return [line.strip() for line in placement_lines(Config.model_validate(sections))]


def test_each_kind_of_actor_has_a_line_and_the_largest_says_what_node_is_needed():
    found = lines(
        samplers={"count": 2, "tensor_parallel_size": 4, "resources": {"CPU": 8, "GPU": 4}},
        training={"workers": 4, "min_workers": 2, "resources_per_worker": {"GPU": 1, "trainer": 1}},
        reward={"replicas": 3, "resources": {}},
    )
    assert found == [
        "placement     actor           count   each asks for",
        "sampler         2       8 CPU + 4 GPU      one engine over 4 GPUs of one node",
        "trainer worker  2 to 4  1 GPU + 1 trainer  goes on with 2 when nodes are lost, grows when they come",
        "reward          3       nothing",
        "an actor lies on one node: there must be one with 8 CPU + 4 GPU, and one with 1 GPU + 1 trainer",
    ]


def test_what_shares_a_gpu_is_told_with_the_memory_that_it_may_take():
    found = lines(
        samplers={"resources": {"GPU": 0.5}, "memory_fraction": 0.45},
        training={"resources_per_worker": {"GPU": 0.25}},
        reward={"resources": {"GPU": 0.25}},
    )
    assert [line.partition("GPU ")[2].strip() for line in found[1:4]] == [
        "at most 45% of the GPU's memory",
        "at most 25% of the GPU's memory",
        "at most 25% of the GPU's memory",
    ]
    assert found[-1] == "a GPU may hold sampler 0.5 + trainer worker 0.25 + reward 0.25"


def test_turns_are_told_on_both_sides():
    found = lines(
        overlap="none",
        samplers={"sleep": True, "resources": {"GPU": 0.5}},
        training={"resources_per_worker": {"GPU": 0.5}},
    )
    assert found[1].endswith("by turns with the trainer worker, asleep while that works")
    assert found[2].endswith("its state in the CPU's memory while the sampler is awake")


def test_a_run_on_given_answers_places_a_trainer_alone():
    found = lines(preferences={"source": "reasoning_gym"}, training={"resources_per_worker": {"CPU": 2}})
    assert [line.split("  ")[0] for line in found[1:]] == [
        "trainer worker",
        "an actor lies on one node: there must be one with 2 CPU",
    ]


def test_the_fewest_workers_of_a_range_are_what_a_cluster_must_hold():
    training = {"workers": 4, "min_workers": 2, "resources_per_worker": {"GPU": 1, "trainer": 1}}
    config = Config.model_validate({"training": training, "samplers": {"resources": {"GPU": 1}}})
    assert needed_resources(config) == {"GPU": 3.0, "trainer": 2.0}
