"""What launcher files ask of the clouds is in the clouds' own descriptions of their interfaces.

Those come with boto3 and google-api-python-client, which the image has and the project's environment has not.
"""

import json
from importlib import resources

import pytest

from tests.cluster.test_launcher_files import loaded


def nodes(name: str) -> dict[str, dict]:
    return {kind: values["node_config"] for kind, values in loaded(name)["available_node_types"].items()}


def complaint_of_aws(node: dict) -> str:
    """... about the parameters of EC2's RunInstances."""
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    return ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, shape).generate_report()


@pytest.mark.parametrize("kind", nodes("aws"))
def test_amazon_knows_every_field_of_a_node(kind):
    assert not complaint_of_aws(nodes("aws")[kind])


def test_a_field_that_amazon_has_not_is_seen():
    assert "InstanceTyp" in complaint_of_aws({**nodes("aws")["head"], "InstanceTyp": "m7i.2xlarge"})


def complaints_of_google(node: dict) -> list[str]:
    """... about an Instance of Compute Engine."""
    package = pytest.importorskip("googleapiclient.discovery_cache.documents")
    document = json.loads(resources.files(package).joinpath("compute.v1.json").read_text())
    return list(_complaints(node, {"$ref": "Instance"}, document["schemas"], "node"))


def _complaints(value, schema: dict, schemas: dict, path: str):
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool}
    if not isinstance(value, kinds.get(schema["type"], object)) and schema.get("format") != "int64":
        yield f"{path} is no {schema['type']}"
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in schema.get("properties", {}):
                yield from _complaints(item, schema["properties"][name], schemas, f"{path}.{name}")
            else:
                yield f"{path} has no {name}"
    elif isinstance(value, list):
        for item in value:
            yield from _complaints(item, schema["items"], schemas, path)
    elif value not in schema.get("enum", [value]):
        yield f"{path} = {value!r} is none of {schema['enum']}"


@pytest.mark.parametrize("kind", nodes("gcp"))
def test_google_knows_every_field_of_a_node(kind):
    assert not complaints_of_google(nodes("gcp")[kind])


def test_a_field_that_google_has_not_is_seen():
    broken = {**nodes("gcp")["samplers"], "scheduling": {"provisioningModel": "SPOTTY", "preemtible": True}}
    assert len(complaints_of_google(broken)) == 2
