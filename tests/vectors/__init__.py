"""Test vectors shared by Python and C."""
