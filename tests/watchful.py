"""The service as it is, looking for a changed configuration each second, so that tests need not wait."""

from bridge.config import loading

LOOKS_EVERY_S = 1.0

if __name__ == "__main__":
    loading.EVERY_S = LOOKS_EVERY_S
    from bridge.__main__ import main  # whose worker takes it over

    main()
