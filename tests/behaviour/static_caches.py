"""The static caches of these tests."""


def static(policy, model, capacity=20, **options):
    return policy.cache(model, static=True, capacity=capacity, **options)
