"""stub"""
def command() -> int:
    """stub"""
