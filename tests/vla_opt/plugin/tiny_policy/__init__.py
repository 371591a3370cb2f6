from tiny_policy.configuration_tiny import TinyConfig as TinyConfig
