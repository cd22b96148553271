package gateway

func childMain() bool { return false }
