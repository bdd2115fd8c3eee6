"""The fields of KubeRay's RayCluster and RayJob that our manifests use, as its reference has them.

KubeRay's own schema (the CustomResourceDefinition of the operator) is in no package that can be installed here. So
this is a part of it, written down from https://docs.ray.io/en/master/kuberay/references/api.html (KubeRay 1.6.2 and
1.7.1): a field that is not here is refused, though KubeRay might know it. Pod templates are left open: Kubernetes has
a schema for them. The last word is a server's: `kubectl apply --dry-run=server -f FILE` with KubeRay installed.
"""

TEXT, COUNT, FLAG, OPEN = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}, {"type": "object"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def closed(required: tuple[str, ...] = (), **fields) -> dict:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def one_of(*words: str) -> dict:
    return {"enum": list(words)}


AUTOSCALER = closed(
    version=one_of("v1", "v2"),
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    resources=OPEN,
    env={"type": "array", "items": OPEN},
    envFrom={"type": "array", "items": OPEN},
    volumeMounts={"type": "array", "items": OPEN},
    securityContext=OPEN,
)
HEAD = closed(
    ("rayStartParams", "template"),
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    rayStartParams=TEXTS,
    template=closed(("spec",), metadata=OPEN, spec=OPEN),
)
WORKERS = closed(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=TEXTS,
    template=closed(("spec",), metadata=OPEN, spec=OPEN),
)
CLUSTER_SPEC = closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=closed(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    suspend=FLAG,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
JOB_SPEC = closed(
    ("entrypoint",),
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    suspend=FLAG,
    submitterPodTemplate=closed(("spec",), metadata=OPEN, spec=OPEN),
    rayClusterSpec=CLUSTER_SPEC,
)


def manifest(kind: str, spec: dict) -> dict:
    metadata = {"type": "object", "anyOf": [{"required": ["name"]}, {"required": ["generateName"]}]}
    fields = {"apiVersion": one_of("ray.io/v1"), "kind": one_of(kind), "metadata": metadata, "spec": spec}
    return closed(tuple(fields), **fields)


SCHEMAS = {"RayCluster": manifest("RayCluster", CLUSTER_SPEC), "RayJob": manifest("RayJob", JOB_SPEC)}
