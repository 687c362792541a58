#!/usr/bin/env python3
"""Checks deploy/kubernetes against the schemas of Kubernetes. Needs kubernetes-validate and PyYAML, and no cluster.

The schema of LeaderWorkerSet comes with its controller. Its fields are listed here; what it holds are templates of pods.
"""

import pathlib
import sys

import kubernetes_validate
import yaml

VERSION = "1.31"
FILE = pathlib.Path(__file__).parents[2] / "deploy/kubernetes/ferry.yaml"
SET_FIELDS = {"replicas", "startupPolicy", "rolloutStrategy", "networkConfig", "leaderWorkerTemplate"}
GROUP_FIELDS = {"size", "restartPolicy", "leaderTemplate", "workerTemplate", "subGroupPolicy", "volumeClaimTemplates"}
RESTART_POLICIES = {"None", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart"}


def validate(what, document):
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        sys.exit(f"{FILE.name}: {what}: {error.message} at {'/'.join(map(str, error.path))}")


def expect(condition, message):
    if not condition:
        sys.exit(f"{FILE.name}: {message}")


def check_group(spec):
    expect(set(spec) <= SET_FIELDS, f"LeaderWorkerSet has no {set(spec) - SET_FIELDS}")
    group = spec["leaderWorkerTemplate"]
    expect(set(group) <= GROUP_FIELDS, f"leaderWorkerTemplate has no {set(group) - GROUP_FIELDS}")
    expect(group["restartPolicy"] in RESTART_POLICIES, f"restartPolicy is {group['restartPolicy']}")
    for name in ("leaderTemplate", "workerTemplate"):
        template = group[name]
        controller = {"selector": {"matchLabels": template["metadata"]["labels"]}, "template": template}
        validate(name, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "ferry"}, "spec": controller})
        pod = template["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["initContainers"] + pod["containers"]:
            missing = {mount["name"] for mount in container["volumeMounts"]} - volumes
            expect(not missing, f"{name}: {container['name']} mounts {missing}, which is no volume of the pod")
            expect("limits" in container["resources"], f"{name}: {container['name']} has no limits")
        for container in pod["containers"]:
            for probe in ("startupProbe", "readinessProbe"):
                expect(probe in container, f"{name}: {container['name']} has no {probe}")
    arguments = group["leaderTemplate"]["spec"]["containers"][0]["args"]
    expect(f"--workers={group['size'] - 1}" in arguments, "--workers is not one less than size")


def main():
    documents = list(yaml.safe_load_all(FILE.read_text()))
    for document in documents:
        if document["kind"] == "LeaderWorkerSet":
            check_group(document["spec"])
        else:
            validate(document["kind"], document)
    print(f"{FILE.name}: {len(documents)} documents are right")


main()
