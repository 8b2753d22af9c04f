"""The cluster's own tests use it like all others."""

from tests.cluster.fixtures import calm, cluster  # noqa: F401
