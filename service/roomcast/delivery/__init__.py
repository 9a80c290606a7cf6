"""④ to ⑧ From the topic to the subscribers: envelope, queue, order, hub, forms."""
