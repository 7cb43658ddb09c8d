def run_demo(replicas: int, seconds: float, *, keep: bool, as_json: bool) -> int:
    raise NotImplementedError
