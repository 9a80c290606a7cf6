"""Publishes what back ends put into queues of SQS, as Centrifugo's consumers do."""
